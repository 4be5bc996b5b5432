"""Phrases that try to overrule a prompt, in six languages: what a detector of single words and letters misses.

They are written for precision, from common knowledge and from the part `dev` of the deepset set
(`benchmarks.screens`). A text that explains such attacks holds them too, and is called one.
"""

import re
from typing import Final

from nodes.patterns import found

_DROP: Final = (
    r"(?:ignor(?:e|iere?n?|ez|a|ar)|disregard|forget|neglect|override|bypass|drop|abandon|vergiss|vergessen|oublie[zr]?|"
    r"olvid(?:a|e|ar)|dimentica|zaboravi)"
)
_OLD: Final = (
    r"(?:all|any|every|the|your|my|these|those|above|previous|prior|preceding|earlier|initial|original|given|last|of|"
    r"system|provided|about|now|nun|jetzt|alle[ns]?|die|deine|bisherigen|vorherigen|obigen|toutes|les|vos|todas|las|tus|"
    r"tutte|le|precedenti|sve)"
)
_ORDERS: Final = (
    r"(?:instructions?|orders?|rules|prompts?|guidelines|directions|directives|commands|tasks|assignments|context|"
    r"information|documents|restrictions|policies|anweisungen|aufträge|aufgaben|regeln|angaben|informationen|"
    r"instruktionen|instrucciones|istruzioni|ordres|instrukcije)"
)
_SAID: Final = (
    r"(?:\s+(?:of\s+)?(?:the\s+)?(?:before|above|that|you|said|we|was|que|davor|vorher|zuvor|gesagte|obige)\b|[,.:;!]|"
    r"\s+and\s+(?:tell|write|say|print|output|answer|repeat|do)\b)"
)
_SHOW: Final = r"(?:(?:reveal|print|show|repeat|display|leak)(?:ing)?|output|tell|give|zeige?n?)"
_PROMPT: Final = (
    r"(?:system\s+prompt|prompt\s+texts?|(?:initial|original|hidden|secret|full|entire)\s+(?:instructions|prompt)|"
    r"(?:prompt|text|instructions)\s+above)"
)
_FREED: Final = (
    r"(?:dan|jailbroken|unrestricted|unfiltered|uncensored|without\s+restrictions|in\s+developer\s+mode|bound\s+by)"
)
_PHRASES: Final = (
    rf"\b{_DROP}\s+(?:{_OLD}\s+){{1,6}}{_ORDERS}\b",
    rf"\b{_DROP}\s+(?:instructions|orders|rules|prompts|guidelines|directives|commands|anweisungen|regeln)\b",
    rf"\b{_DROP}\s+(?:about\s+)?(?:everything|all|alles?|todo|tout){_SAID}",
    rf"\b{_DROP}\s+(?:the\s+)?above\b",
    rf"\b{_SHOW}\s+(?:\w+\s+){{0,4}}{_PROMPT}\b",
    r"\bwhat\s+(?:is|are|were|was)\s+(?:your|the)\s+(?:\w+\s+){0,2}(?:system\s+prompt|instructions)\b",
    rf"\byou\s+are\s+(?:now|no\s+longer)\s+(?:\w+\s+){{0,4}}{_FREED}\b",
    r"\b(?:do\s+anything\s+now|jailbreak\s+mode|developer\s+mode\s+(?:enabled|on))\b",
    # a task of the attacker's own instead of the one given
    r"\bnew\s+(?:tasks?|instructions?|orders)\s+follow\b",
    r"\bfolgen\s+(?:neue|weitere|andere)\s+(?:aufgaben|anweisungen|instruktionen)\b",
    r"\b(?:start|begin)\s+(?:over|again|anew|afresh)\s+(?:with|on)\s+(?:a|the|your)\s+new\s+task\b",
    r"\b(?:starten|beginnen|starte|beginne)\s+(?:\w+\s+){0,4}mit\s+einer\s+neuen\s+aufgabe\b",
    r"\b(?:concentrate|focus)\s+on\s+(?:the|your|this)\s+new\s+task\b",
    r"\blass(?:en\s+sie|t|e)?\s+(?:\w+\s+){0,2}(?:vorherigen|bisherigen|früheren)\s+\w+\s+hinter\b",
    r"\b(?:tasks|instructions|orders|rules)\s+(?:out\s+of|from)\s+your\s+(?:head|memory|mind)\b",
    rf"\b(?:contrary|deviating|abweichend|entgegen)\s+(?:to|from|zu|von)?\s*(?:{_OLD}\s+){{1,3}}{_ORDERS}\b",
    r"\b(?:change|replace|rewrite)\s+your\s+(?:system\s+prompt|instructions|rules|guidelines)\b",
    r"(?:^|[.?!\n]\s*)stop+\s*[:-]+\s*(?:write|say|print|output|schreibe?)\b",
    r"\b(?:attention|achtung)\s*[:-]+\s*stop",
    r"\bdo\s+not\s+(?:look\s+in|use|read|consider)\s+the\s+(?:documents?|articles?|context)\s+provided\b",
    # what the prompt says
    r"\b(?:written|said|stated|stands)\s+at\s+the\s+(?:beginning|start|top)\s+of\s+(?:this|the|your)\s+prompt\b",
    r"\bwhat\s+(?:is|was)\s+(?:written|said|stated)\s+above\s*(?:[?!.]|$)",
    r"\buse\s+(?:also\s+)?(?:the\s+)?information\s+in\s+the\s+prompt\b",
    r"\bhaha\s+pwned\b",
    r"<\|im_(?:start|end)\|>|\[/?INST\]|<</?SYS>>|<\|(?:system|endoftext)\|>",
)

# "Do not forget the instructions" asks for the contrary. Looked at where a phrase was found, which is seldom.
_KEPT: Final = re.compile(
    r"\b(?:do\s+not|don.?t|never|not\s+to|nicht|didn.?t)\s+(?:ever\s+)?(?:forget|ignore|disregard|neglect|bypass|override)\b",
    re.IGNORECASE,
)

# ASCII's own \b, \s and \w: the Unicode ones keep the engine from its fastest way.
ATTACK: Final = "(?i)" + re.sub(r"\\[bsw]", r"(?-u:\g<0>)", "|".join(_PHRASES))


def attacks(text: str) -> bool:
    """Whether the text holds such a phrase. Linear: 2 ns a character of ASCII, else 50."""
    return found(ATTACK, text) and found(ATTACK, _KEPT.sub(" ", text))
