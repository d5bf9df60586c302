"""What the process counts about itself, for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

# A series beside each counter, of which nobody makes use.
disable_created_metrics()  # type: ignore[no-untyped-call]

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

TURNS = Counter("turnstone_turns_total", "Turns ended, by how", ["status"])
TURNS_RUNNING = Gauge("turnstone_turns_running", "Turns this process runs now")
SOCKETS = Gauge("turnstone_sockets", "WebSocket connections open now")
TOKENS = Counter("turnstone_tokens_total", "Tokens used, by kind and source", ["kind", "source"])
FIRST_TOKEN = Histogram(
    "turnstone_first_token_seconds", "From a turn's arrival to its first delta", buckets=(*_FAST, 30.0, 60.0)
)
TURN_START = Histogram("turnstone_turn_start_seconds", "From a turn's arrival to its message stored", buckets=_FAST)
DELTA_LAG = Histogram(
    "turnstone_delta_lag_seconds", "From a provider's read to the reader's socket, where it had to wait", buckets=_FAST
)
CANCEL = Histogram("turnstone_cancel_seconds", "From a cancel to the closed connection to the provider", buckets=_FAST)
FLUSH = Histogram("turnstone_flush_seconds", "One flush of all running turns' new text", buckets=_FAST)
CALLBACK_TRIES = Counter("turnstone_callback_tries_total", "Tries to deliver a callback, by outcome", ["outcome"])
CALLBACK_LATENCY = Histogram(
    "turnstone_callback_latency_seconds",
    "From a callback's commit to its delivery",
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60, 300, 3600, 86_400),
)
CALLBACKS_WAITING = Gauge("turnstone_callbacks_waiting", "Callbacks not delivered yet (all processes)")
CALLBACK_AGE = Gauge("turnstone_callback_age_seconds", "Age of the oldest callback not delivered yet")
CALLBACKS_FAILED = Gauge(
    "turnstone_callbacks_failed", "Callbacks that ran out of tries, kept for a replay (all processes)"
)
CIRCUIT_OPEN = Gauge(
    "turnstone_callback_circuit_open",
    "Whether nobody answers at Core's address, and this process waits with its tries (1)",
)
JUDGE_CALLS = Counter("turnstone_judge_calls_total", "Calls to a judge, by outcome", ["outcome"])
JUDGE_LATENCY = Histogram(
    "turnstone_judge_call_seconds", "One answered call to a judge", buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
)
JUDGEMENTS = Counter("turnstone_judgements_total", "Judgements made, by what came of them", ["status"])
JUDGEMENTS_WAITING = Gauge("turnstone_judgements_waiting", "Judgements to be made (all processes)")
JUDGEMENT_AGE = Gauge("turnstone_judgement_age_seconds", "Age of the oldest judgement to be made")
SUBMISSIONS = Counter("turnstone_submissions_total", "Evaluations of submissions ended, by outcome", ["outcome"])
SUBMISSION_STEPS = Counter(
    "turnstone_submission_steps_total", "Steps of evaluations done, by node and status", ["node", "status"]
)
SUBMISSION_STEP_TIME = Histogram(
    "turnstone_submission_step_seconds",
    "One step of an evaluation that was done",
    ["node"],
    buckets=(0.05, 0.25, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600),
)
SUBMISSIONS_WAITING = Gauge("turnstone_submissions_waiting", "Evaluations of submissions to be made (all processes)")
SUBMISSION_AGE = Gauge("turnstone_submission_age_seconds", "Age of the oldest evaluation to be made")
SUBMISSIONS_HELD = Gauge(
    "turnstone_submissions_held", "Evaluations that wait for a person to release their scores (all processes)"
)
POOL_IN_USE = Gauge("turnstone_database_connections_in_use", "Connections taken from this process's pool")
POOL_SIZE = Gauge("turnstone_database_connections_max", "Size of this process's pool")
LEASE_LOST = Counter("turnstone_leases_lost_total", "Times this process was fenced by another one")
JOB_FAILURES = Counter("turnstone_job_failures_total", "Errors that a background job did not foresee; it goes on")
