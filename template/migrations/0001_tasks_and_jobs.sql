CREATE TABLE tasks (
    id uuid PRIMARY KEY,
    title text NOT NULL CHECK (char_length(title) BETWEEN 1 AND 200),
    description text CHECK (char_length(description) <= 10000),
    status text NOT NULL CHECK (status IN ('open', 'completed')),
    version bigint NOT NULL CHECK (version > 0),
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    completed_at timestamptz
);

-- Pages are read by (status, id) or by id alone, which the primary key serves.
CREATE INDEX tasks_by_status ON tasks (status, id);

CREATE TABLE jobs (
    id uuid PRIMARY KEY,
    -- The job as the service wrote it; its fields are read by the service alone.
    job text NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    -- When it may run next. A worker that takes it moves this ahead, so that a crash brings it back.
    run_at timestamptz NOT NULL DEFAULT now(),
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Set once it has failed for good; then it stays for an operator to look at.
    failed_at timestamptz,
    last_error text
);

CREATE INDEX jobs_due ON jobs (run_at) WHERE failed_at IS NULL;
