-- +goose Up
-- Certificates that an authority of ours has revoked, known here or not yet.
CREATE TABLE revoked (
    fingerprint TEXT   NOT NULL PRIMARY KEY,
    revoked     BIGINT NOT NULL,
    reason      BIGINT NOT NULL -- RFC 5280 section 5.3.1
);
