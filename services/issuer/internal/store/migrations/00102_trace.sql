-- +goose Up
-- The span of a request that waits for its authority: its own id, and the one it began in.
ALTER TABLE request ADD COLUMN trace_span TEXT NOT NULL DEFAULT '';
ALTER TABLE request ADD COLUMN trace_parent TEXT NOT NULL DEFAULT '';
