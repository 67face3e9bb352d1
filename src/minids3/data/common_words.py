"""Frequent words of English prose and of Python, added to the text the tokenizer is trained on.

The corpora use few words; with these the 2,048 tokens also cover a reader's own text tolerably.
"""

from __future__ import annotations

__all__ = ["ENGLISH", "PYTHON", "texts"]

ENGLISH = """
the of and to in is that it was for on are with as his they be at one have this from or had by but
some what there we can out other were all your when up use word how said an each she which do
their time if will way about many then them would write like so these her long make thing see him
two has look more day could go come did my sound no most number who over know water than call
first people may down side been now find any new work part take get place made live where after
back little only round man year came show every good me give our under name very through just form
great think say help low line before turn cause same mean differ move right boy old too does tell
sentence set three want air well also play small end put home read hand port large spell add even
land here must big high such follow act why ask men change went light kind off need house picture
try us again animal point mother world near build self earth father head stand own page should
country found answer school grow study still learn plant cover food sun four thought let keep eye
never last door between city tree cross since hard start might story saw far sea draw left late
run while press close night real life few stop open seem together next white children begin got
walk example ease paper often always music those both mark book letter until mile river car feet
care second group carry took rain eat room friend began idea fish mountain north once base hear
horse cut sure watch color face wood main enough plain girl usual young ready above ever red list
though feel talk bird soon body dog family direct pose leave song measure state product black
short class wind question happen complete ship area half rock order fire south problem piece told
knew pass farm top whole king size heard best hour better true during hundred remember step early
hold west ground interest reach fast five sing listen six table travel less morning ten simple
several vowel toward war lay against pattern slow center love person money serve appear road map
science rule govern pull cold notice voice fall power town fine certain fly unit lead cry dark
machine note wait plan figure star box noun field rest correct able pound done beauty drive stood
contain front teach week final gave green oh quick develop sleep warm free minute strong special
mind behind clear tail produce fact street inch lot nothing course stay wheel full force blue
object decide surface deep moon island foot yet busy test record boat common gold possible plane
age dry wonder laugh thousand ago ran check game shape yes hot miss brought heat snow bed bring
sit perhaps fill east weight language among information because different important without
another system number between however against government company development service general
national however experience
"""
PYTHON = """
False None True and as assert async await break class continue def del elif else except finally
for from global if import in is lambda nonlocal not or pass raise return try while with yield self
cls args kwargs init main name print len range list dict set tuple str int float bool bytes object
type isinstance super property staticmethod classmethod ValueError TypeError KeyError IndexError
AttributeError RuntimeError Exception warning string value values key keys items item index count
append extend insert remove sort sorted reverse join split strip replace format encode decode open
close read write file path data default result results number numbers function method argument
arguments parameter parameters module package message error errors code line lines start stop step
size length width height first last next previous current other context buffer stream text token
tokens input output config option options test tests callable iterable iterator sequence mapping
element elements attribute attributes instance subclass specified otherwise returns raises
optional example examples note see also deprecated version since
"""


def texts() -> list[str]:
    """The words as text: often enough to be counted, too rare to come before the corpora's."""
    english = [word for word in ENGLISH.split()]
    python = [word for word in PYTHON.split()]
    return [" ".join(["", *english, *python])] * 4 + ["\n".join(python)] * 2
