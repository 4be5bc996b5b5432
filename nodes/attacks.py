"""Phrases that try to overrule a prompt, in five languages: what a detector of single words and letters misses.

They are written for precision. A text that explains such attacks holds them too, and is called one.
"""

import re
from typing import Final

from nodes.patterns import found

_DROP: Final = (
    r"(?:ignor(?:e|iere?n?|ez|a|ar)|disregard|forget|neglect|override|bypass|drop|abandon|vergiss|vergessen|oublie[zr]?|"
    r"olvid(?:a|e|ar)|dimentica)"
)
_OLD: Final = (
    r"(?:all|any|every|the|your|my|these|those|above|previous|prior|preceding|earlier|initial|original|given|last|of|"
    r"system|alle[ns]?|die|deine|bisherigen|vorherigen|obigen|toutes|les|vos|todas|las|tus|tutte|le|precedenti)"
)
_ORDERS: Final = (
    r"(?:instructions?|orders?|rules|prompts?|guidelines|directions|directives|commands|tasks|assignments|context|"
    r"information|documents|restrictions|policies|anweisungen|aufträge|aufgaben|regeln|instrucciones|istruzioni|ordres)"
)
_SAID: Final = r"(?:\s+(?:of\s+)?(?:the\s+)?(?:before|above|that|you|said|we|was|que)\b|[,.:;!])"
_SHOW: Final = r"(?:reveal|print|show|repeat|output|display|leak|tell|give|zeige?)"
_PROMPT: Final = (
    r"(?:system\s+prompt|prompt\s+texts?|(?:initial|original|hidden|secret|full|entire)\s+(?:instructions|prompt)|"
    r"(?:prompt|text|instructions)\s+above)"
)
_FREED: Final = (
    r"(?:dan|jailbroken|unrestricted|unfiltered|uncensored|without\s+restrictions|in\s+developer\s+mode|bound\s+by)"
)
_PHRASES: Final = (
    rf"\b{_DROP}\s+(?:{_OLD}\s+){{0,6}}{_ORDERS}\b",
    rf"\b{_DROP}\s+(?:everything|all|alles?|todo|tout){_SAID}",
    rf"\b{_DROP}\s+(?:the\s+)?above\b",
    rf"\b{_SHOW}\s+(?:\w+\s+){{0,4}}{_PROMPT}\b",
    r"\bwhat\s+(?:is|are|were|was)\s+(?:your|the)\s+(?:\w+\s+){0,2}(?:system\s+prompt|instructions)\b",
    rf"\byou\s+are\s+(?:now|no\s+longer)\s+(?:\w+\s+){{0,4}}{_FREED}\b",
    r"\b(?:do\s+anything\s+now|jailbreak\s+mode|developer\s+mode\s+(?:enabled|on))\b",
    r"<\|im_(?:start|end)\|>|\[/?INST\]|<</?SYS>>|<\|(?:system|endoftext)\|>",
)

# ASCII's own \b, \s and \w: the Unicode ones keep the engine from its fastest way.
ATTACK: Final = "(?i)" + re.sub(r"\\[bsw]", r"(?-u:\g<0>)", "|".join(_PHRASES))


def attacks(text: str) -> bool:
    """Whether the text holds such a phrase. Linear: 2 ns a character of ASCII, else 50."""
    return found(ATTACK, text)
