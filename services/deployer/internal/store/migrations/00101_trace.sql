-- +goose Up
-- The span of the attempt under way: its own id, the one it began in, and when; 0 once it has ended.
ALTER TABLE assignment ADD COLUMN trace_span TEXT NOT NULL DEFAULT '';
ALTER TABLE assignment ADD COLUMN trace_parent TEXT NOT NULL DEFAULT '';
ALTER TABLE assignment ADD COLUMN trace_begun BIGINT NOT NULL DEFAULT 0;
-- The story that a challenge, or what the issuer is to be told, belongs to: a W3C traceparent.
ALTER TABLE challenge ADD COLUMN traceparent TEXT NOT NULL DEFAULT '';
ALTER TABLE intent ADD COLUMN traceparent TEXT NOT NULL DEFAULT '';
