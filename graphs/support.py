"""The help desk of a company of 5,000: seven lanes, each with an owner, a risk and a way to evaluate it.

Passwords and access are answered by the light tier from the IT documentation. Benefits go to one approved tier and to
nobody else, and so does what is asked later in the same conversation. Expenses and procurement stay on the light tier
unless the amount is large, cannot be read for sure, or an exception is asked for. Travel stays there too. Questions of
the security policy go to the strong tier, and an answer that does not cite the policy's entries is not given. Legal
requests are summarised for a reviewer: a person decides, and the summary is never an answer.

Attacks and secrets are refused, other personal data is replaced by placeholders. A request that the examples do not
tell clearly, or in another language than English, is sorted by the approved tier; where that tells nothing either, the
desk asks back. Tiers named `approved` and `premium` are used where mesh.toml has them: without `approved` benefits are
not answered, without `premium` the strong lanes say so.

Measured on 132 utterances (`tests/data/support_utterances.yaml`), 112 of them for a lane, which were written before the
examples and chose neither an example nor a number; they were looked at twice, before and after the examples were made
more. The examples alone: 89 right, 19 not told, 4 wrong, and 19 of 20 that are for no lane found. With the words of
law, benefits and incidents before them: 92 right, 16 not told, 4 wrong, and 19 of 20 that are for no lane. What is not
told goes to the approved tier, or is asked back; of the 48 for benefits, security and legal none is taken for another
lane.
"""

from typing import Final

from budgets import Cap
from mesh.deploy import deployable
from mesh.graph import END, START, Graph, Privacy, Risk
from mesh.vocabulary import Ended, Failure
from nodes import (
    PII,
    Amount,
    Brief,
    Checks,
    Citations,
    Earlier,
    Faithful,
    Fallback,
    Grounded,
    Human,
    Injection,
    Intent,
    Language,
    Length,
    LLMClassifier,
    Model,
    OneOf,
    Redact,
    Respond,
    Rules,
    Similarity,
    Structured,
    when,
)

LANES: Final = {
    "passwords": "passwords, sign-in, accounts, VPN, access to systems and folders",
    "benefits": "leave, health insurance, pension, pay, family, sickness",
    "expenses": "money that the employee spent and wants back, company cards, receipts",
    "procurement": "buying for the company: orders, suppliers, quotes, licences",
    "travel": "flights, hotels, trains, visas and rules of business trips",
    "security": "the security policy, phishing, lost devices, confidential data, incidents",
    "legal": "contracts, claims, licences, data protection law, anything to be signed or approved by lawyers",
    "out_of_scope": "anything that is no matter of the company's help desk",
}
LEGAL: Final = (
    r"(?i)\b(lawsuits?|su(e|ed|ing)\s+(us|me|the|our)|litigation|subpoena|cease[ -]and[ -]desist|indemnit\w*|"
    r"indemnif\w*|non-?compete|non-?disclosure|nda|arbitration|in court|our lawyers?|their lawyers?|"
    r"legal(ly)? (approval|sign-?off|review|binding))\b"
)
PRIVATE: Final = (
    r"(?i)\b(pregnan\w+|cancer|diagnos\w+|depress\w+|disabilit\w+|burn-?out|miscarriage|chemo\w*|therap(y|ist)|"
    r"surgery|parental leave|maternity|paternity|sick (leave|pay|note)|pensions?|vacation days|"
    r"(health|dental|life) (insurance|plan|cover))\b"
)
INCIDENT: Final = (
    r"(?i)\b(phish\w*|malware|ransomware|virus|data (leak|breach)|hacked|"
    r"(lost|left|missing|stolen|stole) (\w+ ){0,4}(laptop|computer|phone|tablet|device|badge|key ?card)|"
    r"(laptop|computer|phone|tablet|device|badge|key ?card) (\w+ ){0,3}(lost|missing|stolen)|"
    r"asked (me )?for my (password|code|pin))\b"
)
EXCEPTION: Final = (
    r"(?i)\b(exceptions?|alcohol|wine|beer|gifts?|without (a |the |any )?receipts?|no receipts?|(lost|missing) "
    r"(the |my |a )?receipts?|receipts? (\w+ ){0,3}lost|over the limit|above the limit|personal (use|expense)|spouse|"
    r"wife|husband|rejected|refused|denied|deadline|too late|fines?|penalt(y|ies)|bitcoin)\b"
)
STRANDED: Final = (
    r"(?i)\b(emergency|hospital|accident|stranded|evacuat\w*|passport (was |is |got |has been )?(lost|stolen)|"
    r"(lost|stolen) (my )?passport|mugged|robbed|earthquake|arrested)\b"
)
IT: Final = "You are the IT help desk. Answer in a few short steps. Where you cannot know, name extension 4444."
BENEFITS: Final = (
    "You answer questions about employee benefits. Say what HR must confirm. Never ask for medical details."
)
EXPENSES: Final = "You answer questions about expense claims in a few sentences. Promise no payment: finance decides."
PROCUREMENT: Final = "You answer questions about buying for the company, in a few sentences. Promise no approval."
TRAVEL: Final = "You answer questions about business trips, in a few sentences. Never promise that a booking was made."
SECURITY: Final = (
    "Answer by the entries of the security policy that you are given and by nothing else. Behind each sentence that "
    "says what is allowed, required or forbidden name its entry in square brackets, like [kb:sec-email]."
)
SECURITY_AGAIN: Final = (
    f"{SECURITY} An earlier answer was thrown away, because it cited nothing, or what does not exist. Cite only the "
    "entries that you see."
)
BRIEF: Final = (
    "Summarise the request for a lawyer of the company in at most eight lines: what is asked, by when, which documents "
    "and parties, what could go wrong. Do not answer it, and give no advice."
)
ATTACK: Final = "This request was not passed on: it contains instructions that try to overrule the help desk's own."
WITHHELD: Final = (
    "This request was not passed on, because it holds a card number, a social security number or an access key. Take "
    "it out and ask again. An access key that was written down here is to be revoked."
)
PICTURES: Final = (
    "This request was not passed on: it holds pictures or files, which cannot be searched for personal data. Please "
    "say in words what it is about."
)
ASK_BACK: Final = (
    "I could not tell which desk this is for. Please say it in other words, or one thing at a time: passwords and "
    "access, benefits, expenses, procurement, travel, security policy, or legal approval."
)
ELSEWHERE: Final = (
    "This is the company's help desk: passwords and access, benefits, expenses, procurement, travel, security policy "
    "and legal approval. It cannot help with anything else."
)
BENEFITS_LATER: Final = (
    "Questions about benefits are answered by one approved model only, which is not available now. Please write to HR."
)
CALL_TRAVEL: Final = (
    "In an emergency call the travel line now, at any hour: +1 555 0100. It rebooks, pays hospitals and helps with "
    "lost passports. Tell your manager afterwards."
)
SECURITY_PERSON: Final = (
    "There is no answer to this that the security policy bears out. Information security answers on extension 5555; in "
    "case of doubt, do not do it."
)
LEGAL_APPROVED: Final = "A reviewer of the legal department has approved what you asked for."
LEGAL_REFUSED: Final = "A reviewer of the legal department has not approved what you asked for. They will write to you."
LEGAL_LATE: Final = "Nobody of the legal department could decide in time. Nothing is approved; please write to them."
FINANCE: Final = "This claim needs a decision of finance, who cannot be reached here now. Please send it by the tool."
BUYERS: Final = "This purchase needs a buyer's look, who cannot be reached here now. Please raise a requisition."
IT_DESK: Final = "The IT help desk cannot answer this here now. Please call extension 4444."
TRAVEL_DESK: Final = "The travel desk cannot answer this here now. Please write to it."
SORRY: Final = "The help desk cannot answer this right now. Please try again later, or call extension 4444."
STEADY: Final = {"temperature": 0}
PASSING: Final = (
    Failure.TIMEOUT,
    Failure.UNAVAILABLE,
    Failure.RATE_LIMITED,
    Failure.INVALID_REPLY,
    Failure.OVER_BUDGET,
)

STRONGEST: Final = when("hint.escalate").present() | when("hint.priority").is_("best")

graph = Graph(
    "support",
    baseline="premium",
    cap=Cap(hops=18, model_calls=4, tokens=40_000, usd="0.10", seconds=90),
    doc=__doc__,
)

# -- the numbers that may be turned without a new graph: policies/support.toml -----------------------------------------
graph.number(
    "screen.injection", default=0.98, unit="score", low=0.5, high=1,
    meaning="A text with this detector's score or more is taken for an attack on the prompt, and refused.",
)  # fmt: skip
graph.number(
    "language.floor", default=0.4, unit="score", low=0, high=1,
    meaning="Below this score the language of a request counts as not told.",
)  # fmt: skip
graph.number(
    "language.foreign", default=0.6, unit="score", low=0, high=1,
    meaning="From this score on a request in another language than English is sorted by the approved tier.",
)  # fmt: skip
graph.number(
    "intent.floor", default=0.15, unit="cosine", low=0, high=1,
    meaning="A request that is less like its nearest lane than this is not told by the examples.",
)  # fmt: skip
graph.number(
    "intent.margin", default=0.05, unit="cosine", low=0, high=1,
    meaning="A request whose nearest lane leads the second by less than this is not told by the examples.",
)  # fmt: skip
graph.number(
    "triage.floor", default=0.5, unit="probability", low=0, high=1,
    meaning="Where the approved tier is less sure of a lane than this, the desk asks back.",
)  # fmt: skip
graph.number(
    "docs.floor", default=0.35, unit="cosine", low=0, high=1,
    meaning="An entry that is less like the request than this is not given to a model.",
)  # fmt: skip
graph.number(
    "legal.hours", default=48, unit="hours", low=1, high=336,
    meaning="So long a reviewer of the legal department has; then nothing is approved.",
)  # fmt: skip
for desk, least, most in (("expenses", 500, 100_000), ("procurement", 1_000, 1_000_000)):
    for currency, rate in {"usd": 1.0, "eur": 0.9, "gbp": 0.8}.items():
        graph.number(
            f"{desk}.{currency}", default=least * rate, unit=currency.upper(), low=0, high=most,
            meaning=f"{desk.capitalize()} above this amount go to the strong tier.",
        )  # fmt: skip

# -- what comes in: attacks and secrets are refused, other personal data is replaced -----------------------------------
graph.add_node("screen", Injection("screen.injection"))
graph.add_node("parts", Rules((("unread", when("request.unread_parts").above(0)),), otherwise="text"))
graph.add_node("secrets", PII(kinds=("card", "secret", "ssn")))
graph.add_node("redact", Redact())
graph.add_node("attack", Respond(ATTACK, ends=Ended.REFUSED))
graph.add_node("pictures", Respond(PICTURES, ends=Ended.REFUSED))
graph.add_node("withheld", Respond(WITHHELD, ends=Ended.REFUSED))
graph.add_edge(START, "screen")
graph.add_edge("screen", "parts", on="clean")
graph.add_edge("screen", "attack", on="suspicious")
graph.add_edge("parts", "secrets", on="text")
graph.add_edge("parts", "pictures", on="unread")
graph.add_edge("secrets", "redact", on="clean")
graph.add_edge("secrets", "withheld", on="personal")
graph.add_edge("redact", "language")
graph.add_edge("attack", END)
graph.add_edge("pictures", END)
graph.add_edge("withheld", END)

# -- which lane it is for: words of law, benefits and incidents first, then examples, then the approved tier -----------
graph.add_node("language", Language(expected=("en",), floor="language.floor"))
intent = Intent("support.labels.yaml", floor="intent.floor", margin="intent.margin")
graph.add_node("earlier", Earlier(intent, "benefits", floor="intent.floor"))
graph.add_node("intent", intent)
foreign = ~when("language").is_("en") & when("language_score").at_least("language.foreign")
told = when("task_score").at_least("intent.floor") & when("task_margin").at_least("intent.margin")
graph.add_node("tongue", Rules((("foreign", foreign),), otherwise="english"))
graph.add_node(
    "triage",
    LLMClassifier(
        "approved",
        OneOf("Which desk of the company is this request for?", LANES),
        floor="triage.floor",
        signal="asked",
        optional=True,
    ),
)
graph.add_node(
    "desk",
    Rules(
        (
            ("legal", when("request.text").matches(LEGAL)),
            ("benefits", when("earlier").is_(True) | when("request.conversation").matches(PRIVATE)),
            ("security", when("request.text").matches(INCIDENT)),
            *((lane, when("asked").is_(lane) & when("asked_score").at_least("triage.floor")) for lane in LANES),
            *((lane, ~when("asked").present() & ~foreign & told & when("task").is_(lane)) for lane in LANES),
        ),
        otherwise="unclear",
    ),
)
graph.add_node("ask_back", Respond(ASK_BACK, ends=Ended.REFUSED))
graph.add_node("elsewhere", Respond(ELSEWHERE, ends=Ended.REFUSED))
graph.add_edge("language", "earlier")
graph.add_edge("earlier", "intent")
graph.add_edge("intent", "tongue", on=tuple(LANES))
graph.add_edge("intent", "triage", on="unsure")
graph.add_edge("tongue", "triage", on="foreign")
graph.add_edge("tongue", "desk", on="english")
graph.add_edge("triage", "desk")
graph.add_edge("triage", "desk", on=tuple(Failure))
graph.add_edge("desk", "ask_back", on="unclear")
graph.add_edge("desk", "elsewhere", on="out_of_scope")
graph.add_edge("ask_back", END)
graph.add_edge("elsewhere", END)


def nodes_of(name: str) -> tuple[str, ...]:
    """The nodes of a lane of the light tier."""
    return (f"{name}_wish", name, f"{name}_check", f"{name}_strong", f"{name}_best")


def light_lane(name: str, task: str, apology: str, *, least_chars: int = 1) -> None:
    """The light tier under checks; the strong one where that fails; else the best so far, said to be what it is.

    Who asks for the best, or escalates an answer, gets the strong one at once. Both are given what a retriever before
    them found, where there is one.
    """
    graph.add_node(f"{name}_wish", Rules((("strongest", STRONGEST),), otherwise="any"))
    graph.add_node(name, Grounded("light", task=task, sources=True, defaults=STEADY, max_tokens=400))
    graph.add_node(f"{name}_check", Checks(Structured(), Fallback(), Length(min_chars=least_chars), Faithful(0.75)))
    graph.add_node(f"{name}_strong", Grounded("premium", optional=True, task=task))
    graph.add_node(f"{name}_best", Respond(ends=Ended.DEGRADED, apology=apology))
    graph.add_edge(f"{name}_wish", name, on="any")
    graph.add_edge(f"{name}_wish", f"{name}_strong", on="strongest")
    graph.add_edge(name, f"{name}_check", on="ok")
    graph.add_edge(name, f"{name}_strong", on=("truncated", *PASSING))
    graph.add_edge(name, f"{name}_best", on=(Failure.FILTERED, Failure.OVER_DEADLINE, Failure.THROTTLED))
    graph.add_edge(f"{name}_check", END, on="valid")
    graph.add_edge(f"{name}_check", f"{name}_strong", on="invalid")
    graph.add_edge(f"{name}_strong", END)
    graph.add_edge(f"{name}_strong", f"{name}_best", on=tuple(Failure))
    graph.add_edge(f"{name}_best", END)


# -- passwords and access: the light tier with the IT documentation ----------------------------------------------------
light_lane("access", IT, IT_DESK, least_chars=40)  # shorter, it is the question once more
graph.add_node("docs", Similarity("support.it.kb.yaml", floor="docs.floor"))
graph.add_edge("desk", "docs", on="passwords")
graph.add_edge("docs", "access_wish", on=("similar", "ambiguous"))
graph.add_edge("docs", "access_strong", on="far")

# -- benefits: one approved tier, and otherwise nobody -----------------------------------------------------------------
graph.add_node("benefits", Model("approved", optional=True, task=BENEFITS, attempts=2))
graph.add_node("benefits_later", Respond(BENEFITS_LATER, ends=Ended.REFUSED))
graph.add_edge("desk", "benefits", on="benefits")
graph.add_edge("benefits", END)
graph.add_edge("benefits", "benefits_later", on=tuple(Failure))
graph.add_edge("benefits_later", END)

# -- expenses and procurement: the light tier, unless it is about much money, or an exception --------------------------
light_lane("expenses", EXPENSES, FINANCE)
graph.add_node("expenses_amount", Amount({code: f"expenses.{code.lower()}" for code in ("USD", "EUR", "GBP")}))
graph.add_node("expenses_kind", Rules((("exception", when("request.text").matches(EXCEPTION)),), otherwise="routine"))
graph.add_edge("desk", "expenses_amount", on="expenses")
graph.add_edge("expenses_amount", "expenses_kind", on=("none", "within"))
graph.add_edge("expenses_amount", "expenses_strong", on=("above", "unclear"))
graph.add_edge("expenses_kind", "expenses_wish", on="routine")
graph.add_edge("expenses_kind", "expenses_strong", on="exception")

light_lane("procurement", PROCUREMENT, BUYERS)
graph.add_node("procurement_amount", Amount({code: f"procurement.{code.lower()}" for code in ("USD", "EUR", "GBP")}))
graph.add_edge("desk", "procurement_amount", on="procurement")
graph.add_edge("procurement_amount", "procurement_wish", on=("none", "within"))
graph.add_edge("procurement_amount", "procurement_strong", on=("above", "unclear"))

# -- travel: the light tier; who is in need gets the number to call, and no model --------------------------------------
light_lane("travel", TRAVEL, TRAVEL_DESK)
graph.add_node("travel_kind", Rules((("emergency", when("request.text").matches(STRANDED)),), otherwise="routine"))
graph.add_node("travel_line", Respond(CALL_TRAVEL))
graph.add_edge("desk", "travel_kind", on="travel")
graph.add_edge("travel_kind", "travel_wish", on="routine")
graph.add_edge("travel_kind", "travel_line", on="emergency")
graph.add_edge("travel_line", END)

# -- security policy: the strong tier, and no answer that does not cite the policy -------------------------------------
graph.add_node("policy", Similarity("support.security.kb.yaml", floor="docs.floor", most=3))
graph.add_node("security", Grounded("premium", optional=True, task=SECURITY, defaults=STEADY, unproven=True))
graph.add_node("security_cited", Citations())
graph.add_node(
    "security_again", Grounded("premium", optional=True, task=SECURITY_AGAIN, defaults=STEADY, unproven=True)
)
graph.add_node("security_cited_again", Citations())
graph.add_node("security_person", Respond(SECURITY_PERSON, ends=Ended.DEGRADED))
graph.add_edge("desk", "policy", on="security")
graph.add_edge("policy", "security", on=("similar", "ambiguous"))
graph.add_edge("policy", "security_person", on="far")
graph.add_edge("security", "security_cited")
graph.add_edge("security", "security_person", on=tuple(Failure))
graph.add_edge("security_cited", END, on="valid")
graph.add_edge("security_cited", "security_again", on="invalid")
graph.add_edge("security_again", "security_cited_again")
graph.add_edge("security_again", "security_person", on=tuple(Failure))
graph.add_edge("security_cited_again", END, on="valid")
graph.add_edge("security_cited_again", "security_person", on="invalid")
graph.add_edge("security_person", END)

# -- legal approval: a summary for a reviewer, and whatever happens to it, a person decides ----------------------------
graph.add_node("brief", Brief("approved", optional=True, task=BRIEF, max_tokens=300))
graph.add_node("legal_review", Human("legal.hours"))
graph.add_node("legal_approved", Respond(LEGAL_APPROVED))
graph.add_node("legal_refused", Respond(LEGAL_REFUSED, ends=Ended.REFUSED))
graph.add_node("legal_late", Respond(LEGAL_LATE, ends=Ended.REFUSED))
graph.add_edge("desk", "brief", on="legal")
graph.add_edge("brief", "legal_review")
graph.add_edge("brief", "legal_review", on=tuple(Failure))
graph.add_edge("legal_review", "legal_approved", on="approved")
graph.add_edge("legal_review", END, on="rewritten")
graph.add_edge("legal_review", "legal_refused", on="rejected")
graph.add_edge("legal_review", "legal_late", on="expired")
for told_so in ("legal_approved", "legal_refused", "legal_late"):
    graph.add_edge(told_so, END)

graph.add_node("sorry", Respond(SORRY, ends=Ended.DEGRADED))  # a fixed text: an unchecked answer may lie in the state
graph.add_edge("sorry", END)
graph.on_failure("sorry")

# -- proved by `mesh check` --------------------------------------------------------------------------------------------
LIGHT_LANES: Final = ("passwords", "expenses", "procurement", "travel")
for tier in ("light", "approved", "premium"):
    graph.must_pass("screen", on="clean", before=tier)
    graph.must_pass("parts", on="text", before=tier)
    graph.must_pass("secrets", on="clean", before=tier)
    graph.must_pass("redact", on=("clean", "redacted"), before=tier)
for tier, open_to in {"light": LIGHT_LANES, "premium": (*LIGHT_LANES, "security"), "benefits": ("benefits",)}.items():
    graph.must_pass("earlier", on=("mentioned", "unmentioned"), before=tier)
    graph.must_pass("intent", on=(*LANES, "unsure"), before=tier)
    graph.must_pass("desk", on=open_to, before=tier)
for tier in ("light", "premium"):
    graph.never("desk", on=("benefits", "legal"), reaches=tier)
graph.never("desk", on=("benefits", "legal"), reaches=Privacy.PUBLIC)  # so `approved` must be a private tier
graph.never("desk", on="security", reaches="light")
graph.never("expenses_amount", on=("above", "unclear"), reaches="light")
graph.never("expenses_kind", on="exception", reaches="light")
graph.never("procurement_amount", on=("above", "unclear"), reaches="light")
graph.never("desk", on="legal", reaches="benefits")
graph.must_pass("legal_review", on="approved", before="legal_approved")

# -- who answers for each lane -----------------------------------------------------------------------------------------
graph.lane(
    "front desk", ("attack", "pictures", "withheld", "ask_back", "elsewhere"), owner="service desk", risk=Risk.LOW,
    evaluation="refusals and questions back, read weekly",
)  # fmt: skip
graph.lane(
    "passwords", ("docs", *nodes_of("access")), owner="IT", risk=Risk.LOW,
    evaluation="tickets that are opened again within a day; structural checks on each answer",
)  # fmt: skip
graph.lane(
    "benefits", ("benefits", "benefits_later"), owner="HR", risk=Risk.HIGH,
    evaluation="a sample of 50 a month read by HR, against the benefits handbook",
)  # fmt: skip
graph.lane(
    "expenses", ("expenses_amount", "expenses_kind", *nodes_of("expenses")), owner="finance", risk=Risk.MEDIUM,
    evaluation="claims that finance decides otherwise than the answer said",
)  # fmt: skip
graph.lane(
    "procurement", ("procurement_amount", *nodes_of("procurement")), owner="procurement", risk=Risk.MEDIUM,
    evaluation="requisitions that a buyer sends back",
)  # fmt: skip
graph.lane(
    "travel", ("travel_kind", "travel_line", *nodes_of("travel")), owner="travel desk", risk=Risk.LOW,
    evaluation="structural checks on each answer; bookings that were changed by hand",
)  # fmt: skip
graph.lane(
    "security", ("policy", "security", "security_cited", "security_again", "security_cited_again", "security_person"),
    owner="information security", risk=Risk.HIGH, evaluation="citations checked on each answer; all read weekly",
)  # fmt: skip
graph.lane(
    "legal", ("brief", "legal_review", "legal_approved", "legal_refused", "legal_late"), owner="legal", risk=Risk.HIGH,
    evaluation="every request decided by a person",
)  # fmt: skip

app = deployable(graph)
