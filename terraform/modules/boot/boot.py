#!/usr/bin/env python3
"""A machine's first boot: fetch the release that the instance's tag names, and hand over to its scripts/bootstrap.

Run once by cloud-init, as root, after /etc/sluice/node.env was written. It needs nothing but Python (3.9 or newer)
and asks nobody but the metadata service and AWS. A machine that cannot come up says so, on its console and in its tag
`Boot`, and gives itself back: the group's launch hook is answered with ABANDON, so it never takes work.

Where node.env names keys (SLUICE_RELEASE_KEY: public keys of minisign) nothing of a release is unpacked unless one of
them signed it. This file comes with the user data and not with a release: it can judge one.

    boot install RELEASE     bring a release to this machine, and no more: fetched, verified, unpacked and installed
"""

import base64
import datetime
import hashlib
import hmac
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

NODE_ENV = pathlib.Path("/etc/sluice/node.env")
RELEASES = pathlib.Path("/opt/sluice/releases")
RUNNER = pathlib.Path("/opt/sluice/current/venv/bin/runner")
PATIENCE_SECONDS = 300  # for a metadata service, a tag or a release that is not there yet
BEGAN = time.monotonic()


class BootError(Exception):
    """This machine cannot come up; the text says at which step and why."""


def say(text):
    print(f"boot: {time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


def read_settings(text):
    """The assignments of a systemd EnvironmentFile."""
    lines = (line.strip().partition("=") for line in text.splitlines() if not line.lstrip().startswith(("#", ";")))
    return {name: value.strip().strip("\"'") for name, equals, value in lines if equals}


def patiently(what, ask):
    """Ask until there is an answer. Raises BootError with the last reason when patience ends."""
    deadline, reason, said = time.monotonic() + PATIENCE_SECONDS, "it is empty", False
    while time.monotonic() < deadline:
        try:
            answer = ask()
            if answer:
                return answer
        except OSError as e:
            reason = str(e)
            if isinstance(e, urllib.error.HTTPError) and e.code in (400, 401, 403) and said:
                break  # a second "no" is meant
        if not said:
            say(f"waiting for {what}: {reason}")
        said = True
        time.sleep(1)
    raise BootError(f"{what}: {reason}")


class Metadata:
    """The instance metadata service (IMDSv2)."""

    def __init__(self, url):
        # Straight to it: a proxy would see the machine's credentials.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        self._url = f"{url}/latest"
        self._token = ""

    def get(self, path):
        if not self._token:
            wish = {"X-aws-ec2-metadata-token-ttl-seconds": "3600"}
            request = urllib.request.Request(f"{self._url}/api/token", method="PUT", headers=wish)
            self._token = self._open(request, timeout=5).read().decode()
        path = urllib.parse.quote(path)
        request = urllib.request.Request(
            f"{self._url}/meta-data/{path}", headers={"X-aws-ec2-metadata-token": self._token}
        )
        return self._open(request, timeout=5).read().decode().strip()

    def credentials(self):
        """What the instance's role may sign with."""
        return json.loads(self.get("iam/security-credentials/" + self.get("iam/security-credentials/").splitlines()[0]))


def sign(method, url, body, headers, service, region, credentials, now):
    """The headers that make a request of `service` ours: AWS Signature Version 4. Pure."""
    parts = urllib.parse.urlsplit(url)
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    digest = hashlib.sha256(body).hexdigest()
    headers = dict(headers, **{"host": parts.netloc, "x-amz-content-sha256": digest, "x-amz-date": stamp})
    if credentials.get("Token"):
        headers["x-amz-security-token"] = credentials["Token"]
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name].strip()}\n" for name in sorted(headers))
    request = "\n".join([method, parts.path or "/", parts.query, lines, names, digest])
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = ("AWS4" + credentials["SecretAccessKey"]).encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    who = f"{credentials['AccessKeyId']}/{scope}"
    headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={who}, SignedHeaders={names}, Signature={key.hex()}"
    return headers


class Aws:
    """The three calls of AWS that a boot makes."""

    def __init__(self, region, credentials):
        self._region = region
        self._credentials = credentials

    def _call(self, service, path, body=b""):
        domain = "amazonaws.com.cn" if self._region.startswith("cn-") else "amazonaws.com"
        base = os.environ.get("AWS_ENDPOINT_URL") or f"https://{service}.{self._region}.{domain}"
        url = base.rstrip("/") + urllib.parse.quote(path)
        method = "POST" if body else "GET"
        headers = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"} if body else {}
        now = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017 (Python 3.9)
        headers = sign(method, url, body, headers, service, self._region, self._credentials(), now)
        headers.pop("host")  # urllib writes it
        request = urllib.request.Request(url, data=body or None, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def fetch(self, bucket, key):
        return self._call("s3", f"/{bucket}/{key}")

    def tag(self, instance, key, value):
        form = {"Action": "CreateTags", "Version": "2016-11-15", "ResourceId.1": instance}
        form.update({"Tag.1.Key": key, "Tag.1.Value": value[:250]})
        self._call("ec2", "/", urllib.parse.urlencode(form).encode())

    def abandon(self, group, hook, instance):
        form = {"Action": "CompleteLifecycleAction", "Version": "2011-01-01", "AutoScalingGroupName": group}
        form.update({"LifecycleHookName": hook, "InstanceId": instance, "LifecycleActionResult": "ABANDON"})
        self._call("autoscaling", "/", urllib.parse.urlencode(form).encode())


def verify(release, archive, manifest, signature, keys):
    """Raise BootError unless one of these keys signed this manifest, and it is this release's and this archive's."""
    try:
        raw = base64.b64decode(signature.decode().splitlines()[1], validate=True)
        known = {k[2:10]: k[10:42] for k in (base64.b64decode(line) for line in re.split(r"[,\s]+", keys) if line)}
    except (ValueError, IndexError):
        raise BootError(f"release {release} is refused: no signature of minisign, or no key") from None
    kind, key, mark = raw[:2], raw[2:10], raw[10:]
    if kind != b"ED" or key not in known:
        raise BootError(
            f"release {release} is refused: signed with key {key[::-1].hex().upper()}, which is not trusted"
        )
    with tempfile.TemporaryDirectory() as folder:
        files = {"key": bytes.fromhex("302a300506032b6570032100") + known[key], "signature": mark}
        files["digest"] = hashlib.blake2b(manifest).digest()
        for name, content in files.items():
            pathlib.Path(folder, name).write_bytes(content)
        argv = "openssl pkeyutl -verify -pubin -keyform DER -inkey key -rawin -in digest -sigfile signature"
        if subprocess.run(argv.split(), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            raise BootError(f"release {release} is refused: its signature is not good")
    told = json.loads(manifest)
    if told["id"] != release or told["archive"]["sha256"] != hashlib.sha256(archive).hexdigest():
        raise BootError(f"release {release} is refused: its archive is not the one that was signed")


def unpack(archive, home):
    """Unpack a release, whole or not at all."""
    part = home.with_name(f".{home.name}.part")
    subprocess.run(["rm", "-rf", str(part)], check=True)
    part.mkdir(parents=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extraction_filter = tarfile.data_filter
            tar.extractall(part)
    except (tarfile.TarError, EOFError, OSError) as e:
        raise BootError(f"the release cannot be unpacked: {e}") from None
    subprocess.run(["rm", "-rf", str(home)], check=True)
    part.rename(home)


def bootstrap(home):
    """Run the release's own script. Raises BootError with what it said last."""
    script = home / "scripts/bootstrap"
    if not script.is_file():
        raise BootError("the release has no scripts/bootstrap")
    last = ""
    with subprocess.Popen(
        [script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as run:
        for line in run.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    if run.returncode:
        raise BootError(f"scripts/bootstrap: exit {run.returncode}: {last}")


def bring(release, settings, aws):
    """Fetch a release, verify and unpack it, unless it is here. Returns its folder."""
    if not release.isalnum():
        raise BootError(f"the tag Release says {release!r}, which is no release id")
    home = RELEASES / release
    if (home / "manifest.json").exists():
        return home
    parts = urllib.parse.urlsplit(settings["SLUICE_ARTIFACTS_URL"])
    key = f"{parts.path.strip('/')}/releases/{release}".lstrip("/")
    archive = patiently(f"release {release}", lambda: aws.fetch(parts.netloc, f"{key}.tar.gz"))
    say(f"release {release} fetched, {len(archive)} bytes")
    if settings.get("SLUICE_RELEASE_KEY"):
        try:
            manifest, signature = (aws.fetch(parts.netloc, f"{key}.json{end}") for end in ("", ".minisig"))
        except OSError as e:  # they were put there before the archive
            raise BootError(f"release {release} is refused: its signature is not there ({e})") from None
        verify(release, archive, manifest, signature, settings["SLUICE_RELEASE_KEY"])
        say(f"release {release} is signed by a trusted key")
    unpack(archive, home)
    return home


def boot(settings, metadata, aws):
    release = patiently("the tag Release", lambda: metadata.get("tags/instance/Release"))
    home = bring(release, settings, aws)
    say(f"release {release} unpacked")
    bootstrap(home)
    say("up: the agent answers the launch hook once the service is ready")


def give_up(settings, metadata, aws, reason):
    """Say it wherever it can be heard, and give the instance back: every step, whatever becomes of the others."""
    print(f"error: boot: {reason}", flush=True)
    steps = {"tag": lambda i: aws.tag(i, "Boot", f"failed: {reason}")}
    # A release that came as far as its programs can tell the database.
    if RUNNER.exists():
        steps["event"] = lambda i: subprocess.run(
            [RUNNER, "node", "failed", reason],
            env={**os.environ, **settings, "SLUICE_NODE_ID": i},
            timeout=60,
            check=True,
        )
    if settings.get("SLUICE_GROUP"):  # last: the machine may be taken away at any moment from here
        steps["launch hook"] = lambda i: aws.abandon(settings["SLUICE_GROUP"], "launch", i)
    for what, step in steps.items():
        try:
            step(metadata.get("instance-id"))
            say(f"{what}: done")
        except Exception as e:
            say(f"{what}: {e}")


def main():
    settings = read_settings(NODE_ENV.read_text())
    metadata = Metadata(os.environ.get("SLUICE_IMDS_URL", "http://169.254.169.254"))
    aws = Aws(settings["AWS_REGION"], metadata.credentials)
    if sys.argv[1:2] == ["install"]:
        try:
            return subprocess.run([bring(sys.argv[2], settings, aws) / "scripts/install"]).returncode
        except (BootError, OSError) as e:
            sys.exit(f"error: {e}")
    say("looking for the release")
    try:
        boot(settings, metadata, aws)
    except Exception as e:
        give_up(settings, metadata, aws, str(e) if isinstance(e, BootError) else f"{type(e).__name__}: {e}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
