"""Write the key of stored secrets, which a Secrets Manager secret holds, to a file that only our services read.

    python -c "$(cat secrets.py)" ARN FILE GROUP write|compare

Runs on the node, so that the key goes from AWS to the file and passes nobody in between. Says `same` or `changed`.
"""

import os
import pathlib
import shutil
import sys

import boto3

arn, name, group, mode = sys.argv[1:]
try:
    keys = boto3.client("secretsmanager").get_secret_value(SecretId=arn)["SecretString"].strip()
except Exception as e:
    sys.exit(f"the secret {arn} cannot be read: {type(e).__name__}: {e}")
if not keys or any(c.isspace() for c in keys):
    sys.exit(f"the secret {arn} must be Fernet keys separated by commas, in one line")
path = pathlib.Path(name)
wanted = f"SLUICE_SECRET_KEY={keys}\n"
same = path.exists() and path.read_text() == wanted and (path.stat().st_mode & 0o777, path.group()) == (0o640, group)
if not same and mode == "write":
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(wanted)
    shutil.chown(part, "root", group)
    part.chmod(0o640)
    part.replace(path)
print("same" if same else "changed")
