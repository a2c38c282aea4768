#!/bin/bash
# Fetch the release this instance is tagged with and hand over to its bootstrap.
# Any failure ends the boot here: the launch hook times out and the group tries another instance.
set -euo pipefail
set -a
. /etc/sluice/node.env
set +a

metadata=http://169.254.169.254/latest
token=$(curl -sSf --retry 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 300' "$metadata/api/token")
release=$(curl -sSf --retry 5 -H "X-aws-ec2-metadata-token: $token" "$metadata/meta-data/tags/instance/Release")

home=/opt/sluice/releases/$release
mkdir -p "$home"
aws s3 cp "$SLUICE_ARTIFACTS_URL/releases/$release.tar.gz" - | tar -xz -C "$home"
exec "$home/scripts/bootstrap"
