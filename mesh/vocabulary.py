"""The closed vocabularies: every word that a traversal, a graph or a reply may use for a kind, an outcome or a reason.

A word that is not here does not exist. `docs/glossary.md` has the same tables; a test compares the two.
"""

from enum import StrEnum
from typing import Final

START: Final = "START"
END: Final = "END"


class Kind(StrEnum):
    """What a node is."""

    RULE = "rule"
    PRESCREEN = "prescreen"
    REDACT = "redact"
    CLASSIFIER = "classifier"
    RETRIEVER = "retriever"
    DISPATCHER = "dispatcher"
    MODEL = "model"
    TOOL = "tool"
    VALIDATOR = "validator"
    JUDGE = "judge"
    VOTE = "vote"
    CACHE = "cache"
    HUMAN = "human"
    JOIN = "join"
    RESPOND = "respond"
    END = "end"


DECIDING: Final = frozenset({Kind.CLASSIFIER, Kind.VALIDATOR, Kind.JUDGE, Kind.VOTE})
"""Kinds whose calls of a tier decide, and answer nobody: the caller's bound on its answer's length is not theirs."""


class Ended(StrEnum):
    """How a whole traversal ended."""

    OK = "ok"
    DEGRADED = "degraded"
    CAPPED = "capped"
    REFUSED = "refused"
    REVIEW = "review"
    QUEUED = "queued"
    CUT = "cut"
    ERROR = "error"
    CANCELLED = "cancelled"
    PLANNED = "planned"  # a dry run: the route up to the first paid call


class Failure(StrEnum):
    """The standard failure outcomes of a node that calls a model. They are edges like any other."""

    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"
    RATE_LIMITED = "rate_limited"
    FILTERED = "filtered"
    INVALID_REPLY = "invalid_reply"
    OVER_BUDGET = "over_budget"
    OVER_DEADLINE = "over_deadline"
    THROTTLED = "throttled"


FAILURES: Final[frozenset[str]] = frozenset(Failure)

OK: Final = "ok"
TRUNCATED: Final = "truncated"
CANCELLED: Final = "cancelled"  # a loser of a join, or a hop of a traversal that was cancelled
FAULT: Final = "fault"  # the node's own code raised; ends the traversal as `error`
CAPPED: Final = "capped"
CUT: Final = "cut"


class Joined(StrEnum):
    """The outcomes of a join."""

    JOINED = "joined"
    VETOED = "vetoed"
    SHORT = "short"


class Judged(StrEnum):
    """The outcomes of a human node: what a person made of an answer."""

    APPROVED = "approved"
    REWRITTEN = "rewritten"
    REJECTED = "rejected"
    EXPIRED = "expired"


WAITING: Final = "waiting"  # a human node whose person has not judged yet


class Reason(StrEnum):
    """Why a candidate was not taken."""

    OVER_BUDGET = "over_budget"
    TOO_SLOW = "too_slow"
    BELOW_QUALITY_FLOOR = "below_quality_floor"
    REGION = "region"
    PRIVACY = "privacy"
    CAPABILITY = "capability"
    CONTEXT_WINDOW = "context_window"
    BREAKER_OPEN = "breaker_open"
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    TENANT = "tenant"
    DENIED_BY_HINT = "denied_by_hint"
    THROTTLED = "throttled"
    UNCALIBRATED = "uncalibrated"
    STICKY_SESSION = "sticky_session"
    OVERRIDE = "override"
    BYPASS = "bypass"
    DEARER = "dearer"
    SLOWER = "slower"
    WEAKER = "weaker"
    NOT_CONFIGURED = "not_configured"
    UNKNOWN_PRICE = "unknown_price"
    NOT_PRICEABLE = "not_priceable"


class Cause(StrEnum):
    """Why a node ended with its outcome: the words of `because` on a hop."""

    # any node
    ALWAYS = "always"
    NODE_RAISED = "node_raised"
    REQUEST_CANCELLED = "request_cancelled"
    JOIN_DECIDED = "join_decided"
    ALL_ARRIVED = "all_arrived"
    FIRST_ARRIVED = "first_arrived"
    QUORUM_REACHED = "quorum_reached"
    QUORUM_LOST = "quorum_lost"
    VETO = "veto"
    NODE_TIMEOUT = "node_timeout"
    # caps
    HOP_CAP = "hop_cap"
    VISIT_CAP = "visit_cap"
    MODEL_CALL_CAP = "model_call_cap"
    TOKEN_CAP = "token_cap"
    MONEY_CAP = "money_cap"
    DEADLINE = "deadline"
    DRY_RUN = "dry_run"
    # rules, screens and classifiers
    RULE_MATCHED = "rule_matched"
    NO_RULE_MATCHED = "no_rule_matched"
    NO_FINDING = "no_finding"
    FINDING = "finding"
    ABOVE_THRESHOLD = "above_threshold"
    BELOW_THRESHOLD = "below_threshold"
    NEAREST_LABEL = "nearest_label"
    TOO_CLOSE = "too_close"
    TOO_SHORT = "too_short"
    # dispatchers
    BEST_VIABLE = "best_viable"
    GAVE_WAY = "gave_way"
    NONE_VIABLE = "none_viable"
    PERSON_ASKED_FOR = "person_asked_for"
    OVERRIDE = "override"
    RETRIED = "retried"
    FIRST_TRY = "first_try"
    # calls
    REPLIED = "replied"
    LENGTH_LIMIT = "length_limit"
    NOT_CONFIGURED = "not_configured"
    NO_CANDIDATE = "no_candidate"
    CONNECT_FAILED = "connect_failed"
    CONNECT_TIMEOUT = "connect_timeout"
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"
    TOKEN_GAP_TIMEOUT = "token_gap_timeout"
    TOTAL_TIMEOUT = "total_timeout"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_REJECTED = "upstream_rejected"
    CONTEXT_LENGTH = "context_length"
    UPSTREAM_AUTH = "upstream_auth"
    UPSTREAM_RATE_LIMIT = "upstream_rate_limit"
    UPSTREAM_GARBAGE = "upstream_garbage"
    STREAM_CUT = "stream_cut"
    CONTENT_FILTER = "content_filter"
    BUDGET = "budget"
    CLAMPED = "clamped"
    ESCALATION_SHARE = "escalation_share"
    LEDGER_DOWN = "ledger_down"
    # tools and validators
    SOLVED = "solved"
    NO_SUM = "no_sum"
    VALID = "valid"
    NO_ANSWER = "no_answer"
    EMPTY = "empty"
    NOT_JSON = "not_json"
    SCHEMA = "schema"
    NOT_A_LABEL = "not_a_label"
    PATTERN = "pattern"
    LENGTH = "length"
    FALLBACK_PHRASE = "fallback_phrase"
    NO_CITATION = "no_citation"
    INVENTED_CITATION = "invented_citation"
    UNCITED = "uncited"
    NO_CODE = "no_code"
    SYNTAX = "syntax"
    UNKNOWN_LANGUAGE = "unknown_language"
    NO_TEST = "no_test"
    TEST_FAILED = "test_failed"
    TEST_LIMIT = "test_limit"
    EXECUTION_OFF = "execution_off"
    NOT_ISOLATED = "not_isolated"
    # tool-using loops
    OBSERVED = "observed"
    NO_TOOL_CALLS = "no_tool_calls"
    TOOL_ARGUMENTS = "tool_arguments"
    UNKNOWN_TOOL = "unknown_tool"
    SAME_ROUND = "same_round"
    NEW_ROUND = "new_round"
    NOT_GIVEN = "not_given"
    # caches
    SAME_REQUEST = "same_request"
    SIMILAR_REQUEST = "similar_request"
    NOTHING_KEPT = "nothing_kept"
    NOT_KEPT = "not_kept"
    HIT_CHECKED = "hit_checked"
    # judges, confidence and votes
    BETWEEN_THRESHOLDS = "between_thresholds"
    OWN_ANSWER = "own_answer"
    NO_VERDICT = "no_verdict"
    NO_MEASURE = "no_measure"
    UNCALIBRATED = "uncalibrated"
    MOST_VOTES = "most_votes"
    HIGHEST_SCORE = "highest_score"
    NO_MAJORITY = "no_majority"
    TOO_FEW = "too_few"
    # people
    WAITS_FOR_PERSON = "waits_for_person"
    PERSON_DECIDED = "person_decided"
    NOBODY_DECIDED = "nobody_decided"
    # ends
    RESPONDED = "responded"


class Scope(StrEnum):
    """Whose budget an account is. Reserve names the first that refuses, in this order."""

    REQUEST = "request"
    SESSION = "session"
    WORKFLOW = "workflow"
    TENANT = "tenant"
    PARENT = "parent"


class Dimension(StrEnum):
    """What a cap or an account bounds."""

    HOPS = "hops"
    VISITS = "visits"
    MODEL_CALLS = "model_calls"
    TOKENS = "tokens"
    COST_NUSD = "cost_nusd"
    SECONDS = "seconds"
    REQUESTS = "requests"
    STEPS = "steps"


class EntryKind(StrEnum):
    """What an entry of the ledger records."""

    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"
    CORRECTED = "corrected"
    SOFT_LIMIT = "soft_limit"
    OVERRUN = "overrun"
    ACT = "act"


class Role(StrEnum):
    """What an API key may do."""

    OPERATOR = "operator"
    TENANT = "tenant"
    REVIEWER = "reviewer"
    READ_ONLY = "read-only"


class Sla(StrEnum):
    """What a tenant was promised."""

    FREE = "free"
    PRO = "pro"
    ENTERPRISE = "enterprise"


class Kept(StrEnum):
    """What the ledger's register keeps, with every change of it in the audit log."""

    TENANT = "tenant"
    KEY = "key"
    GRAPH = "graph"
    BYPASS = "bypass"
    POLICY = "policy"


class Reviewed(StrEnum):
    """How far a review has come."""

    PENDING = "pending"
    CLAIMED = "claimed"
    DONE = "done"
    EXPIRED = "expired"


class AlertKind(StrEnum):
    """What an operator is told: of a budget, or of a review."""

    SOFT_LIMIT = "soft_limit"
    OVERRUN = "overrun"
    PROJECTED = "projected"
    FAST_BURN = "fast_burn"
    REVIEW_WAITS = "review_waits"
    REVIEW_JUDGED = "review_judged"


class Privacy(StrEnum):
    """Who sees what is sent to a tier, from nobody else to anybody's cloud."""

    LOCAL = "local"  # never leaves this cluster
    PRIVATE = "private"  # a contract says that nothing is kept
    PUBLIC = "public"


class Capability(StrEnum):
    """What a tier can do beyond plain text."""

    TOOLS = "tools"
    JSON = "json"
    VISION = "vision"
    LOGPROBS = "logprobs"
    STREAM = "stream"


class Priority(StrEnum):
    """What the caller would rather have."""

    CHEAPEST = "cheapest"
    FASTEST = "fastest"
    BEST = "best"
    PRIVATE = "private"
    REVIEWED = "reviewed"


class Risk(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class RetriedBy(StrEnum):
    """How a request was recognised as another try at an earlier one."""

    HINT = "hint"
    CLIENT = "client"
    SIMILARITY = "similarity"


class AttemptStatus(StrEnum):
    """How one call on the wire ended."""

    OK = "ok"
    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"
    RATE_LIMITED = "rate_limited"
    FILTERED = "filtered"
    INVALID_REPLY = "invalid_reply"
    CUT = "cut"
    CANCELLED = "cancelled"


class Concern(StrEnum):
    """What a warning of `mesh check` is about."""

    SLOW_DECISION = "slow_decision"
    FALLBACK_LOOP = "fallback_loop"
    NO_VERSION = "no_version"
    NO_BASELINE = "no_baseline"
    NO_ESCALATION_CAP = "no_escalation_cap"
    ABSENT_TIER = "absent_tier"
    UNREAD_NUMBER = "unread_number"


class Purpose(StrEnum):
    """Why content is kept, apart from the traversals."""

    REVIEW = "review"
    IDEMPOTENCY = "idempotency"
    CACHE = "cache"
    QUEUE = "queue"
    FEEDBACK = "feedback"
    PROMPT = "prompt"


class JobState(StrEnum):
    """How far a batch request has come."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
