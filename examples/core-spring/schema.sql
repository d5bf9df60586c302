CREATE TABLE turnstone_events (
    id text PRIMARY KEY,
    session_id text NOT NULL,
    callback_seq bigint NOT NULL,
    body jsonb NOT NULL,
    UNIQUE (session_id, callback_seq)
);
CREATE TABLE turnstone_sessions (
    session_id text PRIMARY KEY,
    next_seq bigint NOT NULL DEFAULT 1
);
CREATE TABLE turnstone_usage (
    session_id text NOT NULL,
    callback_seq bigint NOT NULL,
    exam_id bigint NOT NULL,
    participant_id bigint NOT NULL,
    purpose text NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    total_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    PRIMARY KEY (session_id, callback_seq)
);
CREATE TABLE turnstone_results (
    submission_id text PRIMARY KEY,
    revision int NOT NULL,
    status text NOT NULL,
    total double precision,
    grade text,
    body jsonb NOT NULL
);
