-- +goose Up
-- One row: the name of this store, part of every stream's handle.
CREATE TABLE epoch (
    id TEXT NOT NULL PRIMARY KEY
);

-- Replicas of the service, so that others know whose streams are open.
CREATE TABLE replica (
    id   TEXT   NOT NULL PRIMARY KEY,
    beat BIGINT NOT NULL
);

-- Hosts that anything is or was assigned to, enrolled or not.
CREATE TABLE host (
    name     TEXT   NOT NULL PRIMARY KEY,
    revision BIGINT NOT NULL,            -- grows with every change of what the agent is told
    floor    BIGINT NOT NULL DEFAULT 0,  -- below it a delta cannot be told any more
    changed  BIGINT NOT NULL,            -- when anything here last changed
    replica  TEXT   NOT NULL DEFAULT '', -- which one has the agent's stream open
    stream   TEXT   NOT NULL DEFAULT ''  -- which stream that is
);
CREATE INDEX host_changed ON host (changed);

CREATE TABLE agent (
    host         TEXT    NOT NULL PRIMARY KEY,
    state        TEXT    NOT NULL,
    version      TEXT    NOT NULL,
    platform     TEXT    NOT NULL,
    connectors   TEXT    NOT NULL, -- JSON
    capability   BIGINT  NOT NULL,
    enrolled     BIGINT  NOT NULL,
    last_seen    BIGINT  NOT NULL,
    svid_expires BIGINT  NOT NULL,
    lock_reason  TEXT    NOT NULL,
    key_hash     TEXT    NOT NULL,
    key_der      BYTEA   NOT NULL,
    pending_hash TEXT    NOT NULL, -- empty: none
    pending_der  BYTEA   NOT NULL,
    clock_wrong  BOOLEAN NOT NULL,
    changed      BIGINT  NOT NULL  -- when its standing or keys last changed
);
CREATE INDEX agent_changed ON agent (changed);

CREATE TABLE join_token (
    id          TEXT    NOT NULL PRIMARY KEY,
    secret_hash BYTEA   NOT NULL, -- SHA-256
    host        TEXT    NOT NULL,
    expires     BIGINT  NOT NULL,
    used_by     TEXT    NOT NULL DEFAULT '',
    used_key    TEXT    NOT NULL DEFAULT '',
    used        BIGINT  NOT NULL DEFAULT 0,
    revoked     BOOLEAN NOT NULL DEFAULT FALSE,
    created_by  TEXT    NOT NULL,
    created     BIGINT  NOT NULL
);
CREATE INDEX join_token_created ON join_token (created, id);
CREATE INDEX join_token_used_by ON join_token (used_by) WHERE used_by <> '';

CREATE TABLE deployment (
    name           TEXT    NOT NULL PRIMARY KEY,
    identity       TEXT    NOT NULL,
    profile        TEXT    NOT NULL,
    key_type       TEXT    NOT NULL, -- as applied, may be empty
    names          TEXT    NOT NULL, -- JSON, as applied, may be empty
    targets        TEXT    NOT NULL, -- JSON
    max_parallel   BIGINT  NOT NULL,
    max_failures   BIGINT  NOT NULL,
    renew_before   BIGINT  NOT NULL, -- microseconds; 0: by the rule
    renew_disabled BOOLEAN NOT NULL,
    wanted_key     TEXT    NOT NULL, -- what key_type comes to
    wanted_names   TEXT    NOT NULL, -- what names come to
    etag           TEXT    NOT NULL,
    created        BIGINT  NOT NULL,
    problem        TEXT    NOT NULL DEFAULT '', -- why it does not fit its identity or profile any more
    checked        BIGINT  NOT NULL  -- when it was last compared with its identity and profile; below 0: do it now
);
CREATE INDEX deployment_identity ON deployment (identity);
CREATE INDEX deployment_profile ON deployment (profile);
CREATE INDEX deployment_checked ON deployment (checked);

-- When a deployment or any of its assignments last changed. Apart, because it is the last row that a transaction locks.
CREATE TABLE deployment_change (
    name    TEXT   NOT NULL PRIMARY KEY,
    changed BIGINT NOT NULL
);
CREATE INDEX deployment_change_changed ON deployment_change (changed);

CREATE TABLE assignment (
    id              TEXT    NOT NULL PRIMARY KEY, -- UUIDv7
    deployment      TEXT    NOT NULL,
    host            TEXT    NOT NULL,
    target          TEXT    NOT NULL,
    spec            TEXT    NOT NULL, -- JSON
    generation      BIGINT  NOT NULL,
    attempt         BIGINT  NOT NULL,
    state           TEXT    NOT NULL,
    fingerprint     TEXT    NOT NULL,
    not_before      BIGINT  NOT NULL,
    not_after       BIGINT  NOT NULL,
    csr             BYTEA,
    served          TEXT    NOT NULL,
    address         TEXT    NOT NULL,
    previous        TEXT    NOT NULL,
    replaces        TEXT    NOT NULL,
    reason          TEXT    NOT NULL,
    message         TEXT    NOT NULL,
    failures        BIGINT  NOT NULL,
    next_attempt    BIGINT  NOT NULL, -- state failed only
    renew_at        BIGINT  NOT NULL, -- 0: never by itself
    renew_by        BIGINT  NOT NULL,
    renew_reason    TEXT    NOT NULL,
    renewed_at      BIGINT  NOT NULL,
    quick_renews    BIGINT  NOT NULL,
    updated         BIGINT  NOT NULL,
    trace           TEXT    NOT NULL, -- joins the records of this generation
    request_next    BIGINT  NOT NULL, -- state requested only: when to speak to the issuer next
    request_tries   BIGINT  NOT NULL,
    request_sent    BOOLEAN NOT NULL, -- the issuer is known to have it
    -- What the agent is told. It trails the rest: while a new generation waits for its turn, the agent keeps the old one.
    told_revision   BIGINT  NOT NULL, -- 0: nothing yet
    told_generation BIGINT  NOT NULL,
    told_attempt    BIGINT  NOT NULL,
    told_spec       TEXT    NOT NULL,
    told_chain      BYTEA,            -- DER, one after another
    told_csr        BOOLEAN NOT NULL
);
CREATE UNIQUE INDEX assignment_target ON assignment (deployment, host, target) WHERE state <> 'withdrawn';
CREATE INDEX assignment_host ON assignment (host, told_revision);
CREATE INDEX assignment_deployment ON assignment (deployment, state);
CREATE INDEX assignment_fingerprint ON assignment (fingerprint) WHERE fingerprint <> '';
CREATE INDEX assignment_planned ON assignment (host, deployment) WHERE state = 'planned';
CREATE INDEX assignment_requested ON assignment (request_next) WHERE state = 'requested';
CREATE INDEX assignment_failed ON assignment (next_attempt) WHERE state = 'failed';
CREATE INDEX assignment_renewal ON assignment (renew_at) WHERE renew_at > 0 AND state IN ('served', 'installed', 'issued');

-- Reports that were taken in, for ever.
CREATE TABLE report (
    host       TEXT   NOT NULL,
    id         TEXT   NOT NULL, -- chosen by the agent
    assignment TEXT   NOT NULL,
    generation BIGINT NOT NULL,
    attempt    BIGINT NOT NULL,
    outcome    TEXT   NOT NULL,
    received   BIGINT NOT NULL,
    PRIMARY KEY (host, id)
);

CREATE TABLE challenge (
    id                TEXT    NOT NULL PRIMARY KEY, -- the issuer's
    host              TEXT    NOT NULL,             -- empty: it was withdrawn before it was presented
    request           TEXT    NOT NULL,
    domain            TEXT    NOT NULL,
    token             TEXT    NOT NULL,
    key_authorization TEXT    NOT NULL,
    revision          BIGINT  NOT NULL,
    withdrawn         BOOLEAN NOT NULL,
    reported          TEXT    NOT NULL, -- '', 'ready' or 'not ready'
    message           TEXT    NOT NULL,
    created           BIGINT  NOT NULL
);
CREATE INDEX challenge_host ON challenge (host, revision);

-- What the issuer is still to be told.
CREATE TABLE intent (
    id      TEXT    NOT NULL PRIMARY KEY, -- "challenge/<id>" or "cancel/<request id>"
    stamp   TEXT    NOT NULL,             -- new with every rewrite, so that an old one is not taken for done
    ready   BOOLEAN NOT NULL,
    message TEXT    NOT NULL,
    due     BIGINT  NOT NULL,
    tries   BIGINT  NOT NULL,
    created BIGINT  NOT NULL
);
CREATE INDEX intent_due ON intent (due);

-- The CA's advice when to renew.
CREATE TABLE renewal_window (
    fingerprint TEXT   NOT NULL PRIMARY KEY,
    starts      BIGINT NOT NULL,
    ends        BIGINT NOT NULL,
    updated     BIGINT NOT NULL
);

-- Renewals asked for by operators, so that the same asked again begins nothing new.
CREATE TABLE renewal_request (
    id          TEXT   NOT NULL PRIMARY KEY,
    deployment  TEXT   NOT NULL,
    host        TEXT   NOT NULL,
    assignments TEXT   NOT NULL, -- JSON: ids
    created     BIGINT NOT NULL
);
