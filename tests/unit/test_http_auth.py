"""Tokens: only what the file lets in comes in, at once after it changes, and with no more than its scopes."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified.service.http_auth import LOCAL, Identity, Scope, TokenFileError, Tokens, main, make_token

NAMES = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=100).filter(
    lambda name: not name.startswith("#")
)
SCOPES = st.lists(st.sampled_from(list(Scope)), min_size=1, unique=True)


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


@given(user=NAMES, scopes=SCOPES, other=st.text(max_size=80))
def test_a_token_lets_its_user_in_and_nothing_else_does(tmp_path_factory, user, scopes, other):
    token, line = make_token(user, scopes)
    tokens = Tokens(write(tmp_path_factory.mktemp("tokens") / "tokens", "# some", "", line))
    assert tokens.identify(token) == Identity(user=user, scopes=frozenset(scopes))
    assert other == token or tokens.identify(other) is None
    assert tokens.identify(token[:-1]) is None
    assert token not in line


def test_no_two_tokens_are_equal():
    assert len({make_token("alice", ["read"])[0] for _ in range(100)}) == 100


def test_a_removed_line_ends_its_token_at_once_and_a_new_one_begins(tmp_path):
    alice, alice_line = make_token("alice", ["read"])
    bob, bob_line = make_token("bob", ["read"])
    tokens = Tokens(write(tmp_path / "tokens", alice_line))
    assert tokens.identify(alice)
    assert not tokens.identify(bob)
    write(tmp_path / "tokens", bob_line, "# one more line")
    assert not tokens.identify(alice)
    assert tokens.identify(bob)


def test_a_file_that_went_bad_lets_nobody_in(tmp_path):
    token, line = make_token("alice", ["read"])
    tokens = Tokens(write(tmp_path / "tokens", line))
    write(tmp_path / "tokens", line, "what is this")
    with pytest.raises(TokenFileError, match="line 2"):
        tokens.identify(token)
    (tmp_path / "tokens").unlink()
    with pytest.raises(TokenFileError, match="cannot be read"):
        tokens.identify(token)


HASH = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "has no tokens"),
        (["# nobody"], "has no tokens"),
        (["alice secret"], "line 1"),
        ([f"{HASH} read"], "line 1"),
        ([f"{HASH} read,write alice"], "'write'.*scopes are read, submit, admin, trust"),
        ([f"{HASH[:-1]} read alice"], "line 1"),
        ([f"{HASH} read {'a' * 101}"], "at most 100"),
        ([f"{HASH} read a\x1b[2Jb"], "printable"),
    ],
)
def test_what_is_no_token_file_is_refused(tmp_path, lines, said):
    with pytest.raises(TokenFileError, match=said):
        Tokens(write(tmp_path / "tokens", *lines))


def test_a_file_that_anybody_may_write_is_refused(tmp_path):
    path = write(tmp_path / "tokens", make_token("alice", ["read"])[1])
    path.chmod(0o666)
    with pytest.raises(TokenFileError, match="chmod o-w"):
        Tokens(path)


def test_an_operator_sees_all_and_may_read_and_submit_but_not_trust():
    operator = Identity(user="root", scopes=frozenset({Scope.ADMIN}))
    user = Identity(user="alice", scopes=frozenset({Scope.READ}))
    assert operator.is_operator
    assert operator.sees is None
    assert [scope for scope in Scope if operator.may(scope)] == [Scope.READ, Scope.SUBMIT, Scope.ADMIN]
    assert user.sees == "alice"
    assert [scope for scope in Scope if user.may(scope)] == [Scope.READ]
    assert all(LOCAL.may(scope) for scope in Scope)


def test_the_command_prints_a_token_and_a_line_that_fit(tmp_path, capsys):
    assert main(["new", "alice b.", "read", "submit"]) == 0
    token, line = (text.partition(": ")[2].strip() for text in capsys.readouterr().out.splitlines())
    assert Tokens(write(tmp_path / "tokens", line)).identify(token).user == "alice b."
    assert main(["new", "alice", "write"]) == 1
    assert main(["new", "alice"]) == 2
    assert main([]) == 2


def test_the_command_needs_no_torch():
    code = "import sys; from unified.service import http_app, http_process, client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
