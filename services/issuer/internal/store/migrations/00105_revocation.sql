-- +goose Up
-- Certificates that were revoked, apart from the others: to revoke is rare, to issue is not.
CREATE TABLE revocation (
    fingerprint   TEXT   NOT NULL PRIMARY KEY REFERENCES certificate (fingerprint),
    request       TEXT   NOT NULL UNIQUE, -- the caller's id
    authority_uid TEXT   NOT NULL,
    authority     TEXT   NOT NULL,
    identity      TEXT   NOT NULL,
    serial        TEXT   NOT NULL, -- lower-case hex
    reason        BIGINT NOT NULL, -- RFC 5280 section 5.3.1
    revoked       BIGINT NOT NULL,
    not_after     BIGINT NOT NULL,
    listed        BIGINT NOT NULL, -- number of the first CRL that has it, 0: none yet
    last          BIGINT NOT NULL  -- number of the first CRL that had it after its own end, 0: none yet
);
CREATE INDEX revocation_due ON revocation (authority_uid) WHERE last = 0;
CREATE INDEX revocation_unlisted ON revocation (authority_uid) WHERE listed = 0;

-- The newest CRL of each CA. That of an authority that was deleted stays: it may be good still.
CREATE TABLE crl (
    key_id        TEXT    NOT NULL PRIMARY KEY, -- of the CA that signed it, lower-case hex
    authority_uid TEXT    NOT NULL,
    authority     TEXT    NOT NULL,
    root          BOOLEAN NOT NULL,
    number        BIGINT  NOT NULL,
    this_update   BIGINT  NOT NULL,
    next_update   BIGINT  NOT NULL,
    entries       BIGINT  NOT NULL,
    der           BYTEA   NOT NULL
);
CREATE UNIQUE INDEX crl_authority ON crl (authority_uid, root);
