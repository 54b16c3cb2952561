"""Chat templates that a stranger could send. Each would hang, fill the memory or reach the interpreter without the limits."""

from __future__ import annotations

_TREE = "{% set a=[0]*1000 %}{% set b=[a]*1000 %}{% set c=[b]*1000 %}{% set d=[c]*1000 %}"
_TWINS = _TREE + "{% set e=[0]*1000 %}{% set f=[e]*1000 %}{% set g=[f]*1000 %}{% set h=[g]*1000 %}"
_TUPLES = "{% set a=(1,)*1000 %}{% set b=(a,)*1000 %}{% set c=(b,)*1000 %}{% set d=(c,)*1000 %}"
_GROWN = "{% set n=namespace(x=[1],y=[1]) %}{% for i in range(60) %}{% set n.x=[n.x,n.x] %}{% set n.y=[n.y,n.y] %}{% endfor %}"
_LONG = "A" * 100_000

STOPPED: dict[str, str] = {
    "loop in a loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "output without end": "{% for i in range(99999) %}{{ 'a' * 1000000 }}{% endfor %}",
    "bytes": "{{ ('a'.encode() * 6000000000) | length }}",
    "wide bytes": "{{ 'a'.encode().ljust(6000000000) | length }}",
    "bytes of a number": "{{ (1).to_bytes(6000000000, 'big') | length }}",
    "long division": "{% set x=('f'*8000000)|int(0,16) %}{% set y=('f'*4000000)|int(0,16) %}{{ x // y }}",
    "long product": "{% set x=('f'*8000000)|int(0,16) %}{{ x * x }}",
    "power of a power": "{{ (9 ** 1000) ** 1000 }}",
    "places": "{{ 1 | round(1000000000, 'ceil') }}",
    "percent widths": "{{ ('%9999s' * 100000) % (('x',) * 100000) }}",
    "percent repeats": "{{ ('%(a)s' * 100000) % {'a': 'x' * 1000000} }}",
    "format widths": "{{ ('%9999s' * 100000) | format(*(('x',) * 100000)) }}",
    "brace widths": "{{ ('{:9999}' * 100000).format(*(('x',) * 100000)) }}",
    "brace repeats": "{{ ('{0}' * 100000).format('x' * 1000000) }}",
    "json indent": "{{ ([0] * 100000) | tojson(indent=100000) }}",
    "json text indent": "{{ ([0] * 100000) | tojson(indent='x' * 1000000) }}",
    "json separators": "{{ ([0] * 100000) | tojson(separators=('x' * 1000000, ':')) }}",
    "tabs": "{{ ('\t' * 100000).expandtabs(100000) }}",
    "comparison of trees": _TWINS + "{{ d == h }}",
    "tree in a list": _TWINS + "{{ d in [h] }}",
    "test of trees": _TWINS + "{{ d is eq h }}",
    "selection of trees": _TWINS + "{{ [d] | select('eq', h) | list }}",
    "order of trees": _TWINS + "{{ [d, h] | sort }}",
    "largest tree": _TWINS + "{{ [d, h] | max }}",
    "groups of trees": _TWINS + "{{ [{'a': d}, {'a': h}] | groupby('a') | list }}",
    "count of trees": _TWINS + "{{ [d].count(h) }}",
    "place of a tree": _TWINS + "{{ [d].index(h) }}",
    "changed tree": _TWINS + "{% for x in [d, h] %}{{ loop.changed(x) }}{% endfor %}",
    "grown trees": _GROWN + "{{ n.x == n.y }}",
    "hash of tuples": _TUPLES + "{{ {d: 1} }}",
    "tuple as a key": _TUPLES + "{{ {1: 1}[d] }}",
    "tuple to get": _TUPLES + "{{ {1: 1}.get(d) }}",
    "tree in an error": _TREE + "{{ raise_exception(d) }}",
    "tree in text": _TREE + "{{ 'a' ~ d }}",
    "tree as json": _TREE + "{{ d | tojson }}",
    "sum of lists": "{{ ([[0] * 1000] * 1000) | sum(start=[]) }}",
    "static text in a block": f"{{% set x %}}{{% for i in range(90000) %}}{_LONG}{{% endfor %}}{{% endset %}}",
    "static text in a macro": f"{{% macro m() %}}{{% for i in range(90000) %}}{_LONG}{{% endfor %}}{{% endmacro %}}{{{{ m() }}}}",
    "long attribute": "{{ range(99999) | map(attribute='a.' * 1000000, default=1) | list }}",
    "many lists": "".join(f"{{% set a{i}=[0]*2000000 %}}" for i in range(200)),
    "many texts": "".join(f"{{% set a{i}='\U0001f600'*8000000 %}}" for i in range(200)),
    "text again and again": "{% set x=[0]*900000 %}{% for i in range(9000) %}{% set y=x~'' %}{% endfor %}",
    "batch": "{% for i in range(99999) %}{% set y=['a']|batch(100000,'a')|list %}{% endfor %}",
    "slice": "{% for i in range(99999) %}{% set y=['a']|slice(100000)|list %}{% endfor %}",
    "macros": "{% macro a(n) %}{% if n %}{{ a(n-1) }}{{ a(n-1) }}{% endif %}{% endmacro %}{{ a(60) }}",
    "time at length": "{{ strftime_now('%Y' * 4000000) }}",
    "split again and again": "{% set x='a '*1000000 %}{% for i in range(9999) %}{% set y=x.split() %}{% endfor %}",
    "join of joins": "{{ range(99999) | map('string') | join(',' * 80000) }}",
    "method join": "{{ (',' * 80000).join(range(99999) | map('string')) }}",
    "replace of nothing": "{{ ('a' * 4000000).replace('', 'bb') }}",
    "translate": "{{ 'a'.translate({97: 'x' * 8000000}) }}",
    "backward search": "{% set x='a'*4000000 %}{% set y='b'~'a'*2000000 %}{{ x.rfind(y) }}",
    "backward split": "{% set x='a'*4000000 %}{% set y='b'~'a'*2000000 %}{{ x.rsplit(y) }}",
    "strip": "{% set x='a'*4000000 %}{% set y='b'*4000000~'a' %}{{ x.strip(y) }}",
    "trim": "{% set x='a'*4000000 %}{% set y='b'*4000000~'a' %}{{ x | trim(y) }}",
    "lists of a loop": "{% for i in range(99999) %}{% set x=[" + "0," * 40_000 + "] %}{% endfor %}",
    "folded constants": "{% set a='x'|center(100000)|replace(' ','b'|center(80)) %}" * 300 + "{{ a ~ a }}",
    "escapes of escapes": "{{ ('<' * 8000000) | e | e | e }}",
}
"""Name -> a template that must be stopped by its budget, in seconds and in bounded memory."""

REFUSED: dict[str, str] = {
    "recursion of macros": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "recursion of blocks": "{% block a %}{{ self.a() }}{% endblock %}",
    "recursion of loops": "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "a huge range": "{{ range(10 ** 12) | list }}",
    "another file": "{% include '/etc/passwd' %}",
    "another file, imported": "{% import '/etc/passwd' as x %}{{ x }}",
    "another file, extended": "{% extends '/etc/passwd' %}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a class": "{{ cycler.__init__.__globals__ }}",
    "globals of a namespace": "{{ namespace.__init__.__globals__ }}",
    "function of a method": "{{ dict.fromkeys.__func__.__globals__ }}",
    "class through format": "{{ ('{0.__class__.__mro__}' | attr('format'))(1) }}",
    "a namespace of classes": "{{ namespace(__class__=1) }}",
    "chance": "{{ [1, 2] | random }}",
    "filler": "{{ lipsum() }}",
    "print for people": "{{ [1] | pprint }}",
    "a change of what is given": "{{ messages.append(1) }}",
    "wrapped lines": "{{ ('a ' * 100000) | wordwrap(1, wrapstring='x' * 1000000) }}",
}
"""Name -> a template that must fail on any conversation."""

UNREADABLE: dict[str, str] = {
    "too long": "{{ 1 }}" * 100_000,
    "parentheses": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "lists": "{{ " + "[" * 50_000 + "]" * 50_000 + " }}",
    "sums": "{{ 1" + "+1" * 20_000 + " }}",
    "filters": "{{ 1" + "|int" * 20_000 + " }}",
    "attributes": "{{ a" + ".a" * 20_000 + " }}",
    "loops": "{% for a in [1] %}" * 60 + "{% endfor %}" * 60,
    "conditions": "{% if a %}" * 3_000 + "{% endif %}" * 3_000,
    "an open comment": "{#" * 50_000,
    "an open block": "{%" * 50_000,
    "an open text": "{{ '" + "\\" * 50_000,
}
"""Name -> a text that must not compile."""

HARMLESS: dict[str, str] = {
    "class by attr": "{{ '' | attr('__class__') }}",
    "class by braces": "{{ '{0.__class__}'.format(1) }}",
    "class by map": "{{ [1] | map(attribute='__class__') | list }}",
    "class by a mapped filter": "{{ [1] | map('attr', '__class__') | list }}",
    "self of a clock": "{{ strftime_now.__self__ }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "self of a method": "{{ messages[0].items.__self__ }}",
    "a namespace in text": "{% set n=namespace(x=[1]) %}{% for i in range(60) %}{% set n.x=[n.x] %}{% endfor %}{{ n }}",
    "a loop in text": "{% for x in [1] %}{{ loop.index }}{% endfor %}",
}
"""Name -> a template that may pass, and must show nothing of the interpreter."""
