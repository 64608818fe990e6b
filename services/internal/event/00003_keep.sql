-- +goose Up
-- What this store knows of the other side, so that it notices when that has lost something.
CREATE TABLE event_mark (
    name TEXT   NOT NULL PRIMARY KEY, -- 'stream', or 'consumer/<durable>'
    at   BIGINT NOT NULL -- when that stream was made; until when that consumer has heard everything
);
