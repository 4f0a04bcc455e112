"""supabase-js, as npm has it, works against the gateway as it does against a project."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.local.gateway.conftest import make_token
from tests.node import SOURCES, installed

pytestmark = pytest.mark.anyio

USER = "11111111-1111-1111-1111-111111111111"
SCHEMA = """
create table public.notes (id bigint primary key, label text);
create table public.mine (id bigint primary key, owner uuid);
alter table public.mine enable row level security;
create policy own on public.mine for select to authenticated using (owner = auth.uid());
alter publication supabase_realtime add table public.notes, public.mine;
revoke all on public.notes from anon;
grant all on public.notes, public.mine to service_role;
grant select on public.mine to anon, authenticated;
create policy rooms on realtime.messages for select to authenticated using (realtime.topic() like 'room:%');
create function public.add(a int, b int default 1) returns int language sql stable as 'select a + b';
create function public.tell(topic text, private boolean) returns void language sql security definer
  as $$ select realtime.send('{"n": 3}', 'told', topic, private) $$;
"""


async def test_supabase_js(stack: Any, tmp_path: Path) -> None:
    packages = await anyio.to_thread.run_sync(installed)
    shutil.copy(SOURCES / "supabase.test.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(packages / "node_modules")
    await execute(stack, SCHEMA)
    environment = {
        "URL": stack.api_url,
        "SERVICE_KEY": stack.service_role_key,
        "PUBLISHABLE_KEY": stack.publishable_key,
        "USER_TOKEN": make_token(role="authenticated", sub=USER, secret=stack.jwt_secret),
        "PATH": os.environ["PATH"],
    }
    done = await anyio.run_process(
        ["node", "--test", "--test-reporter=spec", "supabase.test.mjs"],
        cwd=tmp_path, env=environment, check=False, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode()


async def execute(stack: Any, sql: str) -> None:
    """Run statements as the superuser."""
    import asyncpg

    connection = await asyncpg.connect(stack.admin_url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
