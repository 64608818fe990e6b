-- +goose Up
-- The search index: what is asked for of each record of the log, and where the record is. The log is the truth: this table is
-- made from it, and may be emptied at any time.
CREATE TABLE record (
    position BIGINT NOT NULL PRIMARY KEY, -- in the log, from 0
    event_id TEXT   NOT NULL UNIQUE,
    time     BIGINT NOT NULL,
    type     BYTEA  NOT NULL, -- bytes, so that a prefix is a range whatever the collation
    subject  BYTEA  NOT NULL,
    actor    TEXT   NOT NULL,
    result   TEXT   NOT NULL,
    trace_id TEXT   NOT NULL
);
CREATE INDEX record_time ON record (time);
CREATE INDEX record_type ON record (type, position);
CREATE INDEX record_subject ON record (subject, position);
CREATE INDEX record_actor ON record (actor, position);
CREATE INDEX record_trace ON record (trace_id) WHERE trace_id <> '';
CREATE INDEX record_failed ON record (result, position) WHERE result <> 'succeeded';

-- One row: the log this index is of, and how far its records were published on the NATS subject.
CREATE TABLE log (
    id        BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    verifier  TEXT   NOT NULL,
    published BIGINT NOT NULL DEFAULT 0
);
