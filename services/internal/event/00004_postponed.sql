-- +goose Up
-- Events that a consumer has failed at again and again. They are kept here and no longer at the broker, where they would stand in the
-- way of others, and are tried until they can be handled.
CREATE TABLE postponed (
    event_id TEXT   NOT NULL PRIMARY KEY,
    consumer TEXT   NOT NULL, -- its durable name
    payload  BYTEA  NOT NULL, -- a sallyport.event.v1.Event without its facts
    since    BIGINT NOT NULL, -- when the broker had it
    tries    BIGINT NOT NULL, -- from here
    due      BIGINT NOT NULL, -- when it is tried next
    error    TEXT   NOT NULL  -- why it failed last
);
CREATE INDEX postponed_due ON postponed (consumer, due);
