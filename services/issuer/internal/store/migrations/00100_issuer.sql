-- +goose Up
CREATE TABLE authority (
    name        TEXT   NOT NULL PRIMARY KEY,
    uid         TEXT   NOT NULL UNIQUE, -- told apart from another of the same name that was deleted
    kind        TEXT   NOT NULL,
    spec        TEXT   NOT NULL, -- JSON of authority.Spec
    etag        TEXT   NOT NULL,
    chain       TEXT   NOT NULL, -- chain.id of its CA certificates, '' where it does not know them
    key_sealed  BYTEA  NOT NULL, -- issuing key or account key
    root_sealed BYTEA,           -- root key, internal authorities only
    account     TEXT   NOT NULL, -- JSON of acme.Account; the key exists before the account does
    problem     TEXT   NOT NULL,
    created     BIGINT NOT NULL
);

CREATE TABLE profile (
    name      TEXT   NOT NULL PRIMARY KEY,
    authority TEXT   NOT NULL REFERENCES authority (name),
    spec      TEXT   NOT NULL, -- JSON of profile.Profile
    etag      TEXT   NOT NULL,
    created   BIGINT NOT NULL
);
CREATE INDEX profile_authority ON profile (authority);

-- CA certificates as they follow a leaf, once for all leaves that share them.
CREATE TABLE chain (
    id   TEXT  NOT NULL PRIMARY KEY, -- SHA-256 over the certificates
    ders BYTEA NOT NULL              -- concatenated DER, issuing first
);

CREATE TABLE request (
    id            TEXT    NOT NULL PRIMARY KEY, -- the submitter's
    digest        TEXT    NOT NULL,
    identity      TEXT    NOT NULL,
    profile       TEXT    NOT NULL,
    authority     TEXT    NOT NULL,
    authority_uid TEXT    NOT NULL,
    names         TEXT    NOT NULL, -- JSON
    csr           BYTEA,            -- as long as it is needed
    state         TEXT    NOT NULL,
    replaces      TEXT    NOT NULL,
    reason        TEXT    NOT NULL,
    message       TEXT    NOT NULL,
    attempts      BIGINT  NOT NULL,
    failures      BIGINT  NOT NULL, -- troubles in a row
    polls         BIGINT  NOT NULL, -- looks without news in a row
    next_attempt  BIGINT  NOT NULL, -- 0: nothing is left to do
    created       BIGINT  NOT NULL,
    updated       BIGINT  NOT NULL,
    trace_id      TEXT    NOT NULL,
    usages        TEXT    NOT NULL, -- JSON: what it was accepted under, profile deleted or not
    lifetime      BIGINT  NOT NULL, -- microseconds
    order_profile TEXT    NOT NULL,
    order_url     TEXT    NOT NULL,
    order_final   TEXT    NOT NULL,
    order_cert    TEXT    NOT NULL,
    order_plain   BOOLEAN NOT NULL,
    order_count   BIGINT  NOT NULL,
    fingerprint   TEXT    NOT NULL,
    claimed_by    TEXT    NOT NULL, -- which process works on it
    claimed_until BIGINT  NOT NULL,
    fence         BIGINT  NOT NULL  -- grows with every claim: a late worker cannot write
);
CREATE INDEX request_created ON request (created, id);
CREATE INDEX request_identity ON request (identity, created, id);
CREATE INDEX request_due ON request (next_attempt) WHERE next_attempt > 0;
CREATE UNIQUE INDEX request_order ON request (order_url) WHERE order_url <> '';

CREATE TABLE challenge (
    id                TEXT   NOT NULL PRIMARY KEY,
    request           TEXT   NOT NULL REFERENCES request (id),
    authorization_url TEXT   NOT NULL,
    url               TEXT   NOT NULL,
    domain            TEXT   NOT NULL,
    token             TEXT   NOT NULL,
    key_authorization TEXT   NOT NULL,
    state             TEXT   NOT NULL,
    message           TEXT   NOT NULL,
    updated           BIGINT NOT NULL
);
CREATE INDEX challenge_request ON challenge (request);

CREATE TABLE certificate (
    fingerprint   TEXT   NOT NULL PRIMARY KEY,
    request       TEXT   NOT NULL UNIQUE REFERENCES request (id), -- one certificate per request, ever
    identity      TEXT   NOT NULL,
    authority_uid TEXT   NOT NULL,
    serial        TEXT   NOT NULL, -- lower-case hex
    der           BYTEA  NOT NULL,
    chain         TEXT   NOT NULL REFERENCES chain (id),
    not_before    BIGINT NOT NULL,
    not_after     BIGINT NOT NULL,
    renewal_id    TEXT   NOT NULL, -- '' where the CA gives no renewal information
    window_start  BIGINT NOT NULL, -- 0: not known
    window_end    BIGINT NOT NULL,
    window_url    TEXT   NOT NULL,
    window_next   BIGINT NOT NULL, -- when to ask again, 0: never
    window_fails  BIGINT NOT NULL,
    claimed_by    TEXT   NOT NULL,
    claimed_until BIGINT NOT NULL,
    fence         BIGINT NOT NULL
);
CREATE INDEX certificate_window ON certificate (window_next) WHERE window_next > 0;
