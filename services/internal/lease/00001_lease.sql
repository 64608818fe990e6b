-- +goose Up
CREATE TABLE lease (
    name   TEXT   NOT NULL PRIMARY KEY,
    holder TEXT   NOT NULL, -- empty: released
    fence  BIGINT NOT NULL, -- grows with every new holder
    beat   BIGINT NOT NULL, -- grows with every renewal
    ttl    BIGINT NOT NULL  -- microseconds without a beat after which another may take over
);
