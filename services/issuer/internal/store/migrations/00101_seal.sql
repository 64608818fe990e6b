-- +goose Up
-- A known text, sealed under the key-encryption key that all keys here are sealed under.
CREATE TABLE seal (
    id     BIGINT NOT NULL PRIMARY KEY,
    sealed BYTEA  NOT NULL
);
