-- +goose Up
CREATE TABLE identity (
    name    TEXT   NOT NULL PRIMARY KEY,
    owner   TEXT   NOT NULL,
    purpose TEXT   NOT NULL,
    names   TEXT   NOT NULL, -- JSON, as are the labels
    labels  TEXT   NOT NULL,
    etag    TEXT   NOT NULL,
    created BIGINT NOT NULL
);
CREATE INDEX identity_owner ON identity (owner, name);

-- Certificates that were issued, seen, or belong to an authority. The DER says everything else about them.
CREATE TABLE certificate (
    fingerprint TEXT    NOT NULL PRIMARY KEY,
    der         BYTEA   NOT NULL,
    not_after   BIGINT  NOT NULL,
    issuer      TEXT    NOT NULL, -- distinguished name in lower case, to be searched
    issuer_key  TEXT    NOT NULL, -- hash of the encoded issuer name
    signer      TEXT    NOT NULL DEFAULT '', -- hash of the key that was found to have signed it; '' while none was
    known       BIGINT  NOT NULL, -- since when
    issued      BIGINT  NOT NULL DEFAULT 0, -- when its request ended in it; 0: by none of ours
    identity    TEXT    NOT NULL DEFAULT '',
    authority   TEXT    NOT NULL DEFAULT '',
    profile     TEXT    NOT NULL DEFAULT '',
    request     TEXT    NOT NULL DEFAULT '',
    replaces    TEXT    NOT NULL DEFAULT '',
    -- What follows sums up other rows, for searches.
    present     BOOLEAN NOT NULL DEFAULT FALSE, -- seen somewhere or assigned to some target
    served      BOOLEAN NOT NULL DEFAULT FALSE,
    replaced    BOOLEAN NOT NULL DEFAULT FALSE  -- by another of the same identity
);
CREATE INDEX certificate_end ON certificate (not_after, fingerprint);
CREATE INDEX certificate_present ON certificate (not_after, fingerprint) WHERE present;
CREATE INDEX certificate_waiting ON certificate (not_after, fingerprint) WHERE NOT present AND NOT replaced;
CREATE INDEX certificate_served ON certificate (not_after, fingerprint) WHERE served;
CREATE INDEX certificate_identity ON certificate (identity, not_after, fingerprint);
CREATE INDEX certificate_authority ON certificate (authority, not_after, fingerprint);
CREATE INDEX certificate_replaces ON certificate (replaces);
CREATE INDEX certificate_issuer ON certificate (issuer_key);

CREATE TABLE certificate_name (
    name        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    PRIMARY KEY (name, fingerprint)
);

-- CA certificates that vouch for others: an authority's own, and those seen in chains.
CREATE TABLE issuer (
    fingerprint TEXT    NOT NULL PRIMARY KEY,
    der         BYTEA   NOT NULL,
    subject_key TEXT    NOT NULL, -- hash of the encoded subject name
    issuer_key  TEXT    NOT NULL,
    spki        TEXT    NOT NULL,
    vouched     BOOLEAN NOT NULL DEFAULT FALSE -- an authority told or delivered it, or signatures lead to one that it did
);
CREATE INDEX issuer_subject ON issuer (subject_key);
CREATE INDEX issuer_issuer ON issuer (issuer_key) WHERE NOT vouched;

CREATE TABLE authority (
    name  TEXT   NOT NULL PRIMARY KEY,
    told  BIGINT NOT NULL,
    event TEXT   NOT NULL
);
CREATE TABLE authority_certificate ( -- the same chains, one row each
    authority   TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    PRIMARY KEY (authority, fingerprint)
);
CREATE INDEX authority_certificate_fingerprint ON authority_certificate (fingerprint);

CREATE TABLE host (
    name        TEXT   NOT NULL PRIMARY KEY,
    created     BIGINT NOT NULL,
    state       TEXT   NOT NULL DEFAULT '',
    state_told  BIGINT NOT NULL DEFAULT 0,
    state_event TEXT   NOT NULL DEFAULT '',
    version     TEXT   NOT NULL DEFAULT '',
    platform    TEXT   NOT NULL DEFAULT '',
    info_told   BIGINT NOT NULL DEFAULT 0,
    last_report BIGINT NOT NULL DEFAULT 0,
    last_scan   BIGINT NOT NULL DEFAULT 0,
    forgotten   BIGINT NOT NULL DEFAULT 0 -- scans that began before are not kept
);
CREATE INDEX host_report ON host (last_report);

-- What is known of the newest scans of a host. A removed agent counts as a scan that saw nothing.
CREATE TABLE scan (
    host      TEXT   NOT NULL,
    id        TEXT   NOT NULL,
    started   BIGINT NOT NULL, -- time of the first part that came in
    completed BIGINT NOT NULL, -- time of the last part, 0 while it has not come
    PRIMARY KEY (host, id)
);

CREATE TABLE sighting (
    host        TEXT   NOT NULL,
    role        TEXT   NOT NULL,
    location    TEXT   NOT NULL,
    server_name TEXT   NOT NULL,
    fingerprint TEXT   NOT NULL,
    first_seen  BIGINT NOT NULL,
    last_seen   BIGINT NOT NULL,
    gone        BIGINT NOT NULL, -- 0 while it is there
    PRIMARY KEY (host, role, location, server_name, fingerprint)
);
CREATE INDEX sighting_fingerprint ON sighting (fingerprint, host);

-- The newest that was told of each assignment in each generation.
CREATE TABLE generation (
    assignment  TEXT   NOT NULL,
    number      BIGINT NOT NULL,
    deployment  TEXT   NOT NULL,
    identity    TEXT   NOT NULL,
    host        TEXT   NOT NULL,
    target      TEXT   NOT NULL,
    state       TEXT   NOT NULL,
    fingerprint TEXT   NOT NULL,
    served      TEXT   NOT NULL,
    address     TEXT   NOT NULL,
    renew_by    BIGINT NOT NULL,
    told        BIGINT NOT NULL,
    event       TEXT   NOT NULL,
    PRIMARY KEY (assignment, number)
);

-- Since when certificates were in place by an assignment.
CREATE TABLE placement (
    host        TEXT   NOT NULL,
    assignment  TEXT   NOT NULL,
    fingerprint TEXT   NOT NULL,
    placed      BIGINT NOT NULL, -- first reported installed
    served      BIGINT NOT NULL, -- first reported served by a listener, 0 for never
    PRIMARY KEY (host, assignment, fingerprint)
);
CREATE INDEX placement_assignment ON placement (assignment);

-- What the generations of an assignment add up to, for searches.
CREATE TABLE assignment (
    id         TEXT    NOT NULL PRIMARY KEY,
    deployment TEXT    NOT NULL DEFAULT '',
    identity   TEXT    NOT NULL DEFAULT '',
    host       TEXT    NOT NULL DEFAULT '',
    target     TEXT    NOT NULL DEFAULT '',
    address    TEXT    NOT NULL DEFAULT '',
    seen       TEXT    NOT NULL DEFAULT '', -- fingerprint last reported served
    changed    BIGINT  NOT NULL DEFAULT 0,
    withdrawn  BOOLEAN NOT NULL DEFAULT FALSE
);
CREATE INDEX assignment_target ON assignment (host, target);

-- Which certificates may be live by an assignment, and which one was reported served.
CREATE TABLE assigned (
    assignment  TEXT    NOT NULL,
    fingerprint TEXT    NOT NULL,
    place       BIGINT  NOT NULL, -- 0: the one wanted; then those it follows; -1: not assigned, only reported served
    host        TEXT    NOT NULL,
    target      TEXT    NOT NULL,
    served      BOOLEAN NOT NULL, -- a listener was last reported to serve it
    renew_by    BIGINT  NOT NULL,
    PRIMARY KEY (assignment, fingerprint)
);
CREATE INDEX assigned_fingerprint ON assigned (fingerprint);
CREATE INDEX assigned_host ON assigned (host);

CREATE TABLE finding (
    rule     TEXT   NOT NULL,
    subject  TEXT   NOT NULL,
    opened   BIGINT NOT NULL,
    closed   BIGINT NOT NULL DEFAULT 0, -- 0 while open
    rank     BIGINT NOT NULL, -- 3 minus severity: the worst first
    message  TEXT   NOT NULL,
    identity TEXT   NOT NULL, -- whose owner answers for the subject, '' where none is known
    PRIMARY KEY (subject, rule, opened)
);
CREATE UNIQUE INDEX finding_open ON finding (subject, rule) WHERE closed = 0;
CREATE INDEX finding_order_open ON finding (rank, opened, rule, subject) WHERE closed = 0;
CREATE INDEX finding_order ON finding (rank, opened, rule, subject);

-- Subjects to be judged, and when.
CREATE TABLE due (
    subject TEXT   NOT NULL PRIMARY KEY,
    at      BIGINT NOT NULL
);
CREATE INDEX due_at ON due (at);
