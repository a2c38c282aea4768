#!/bin/sh
# The root filesystem of a container node: what Debian's cloud image has, and what the roles expect to find.
# Usage: image.sh DIRECTORY [MIRROR]. Needs root, debootstrap and a Debian mirror. The image is known by the hash
# of this file: change a line and the next `deployctl local up --nodes containers` builds a new one.
set -eu
root=$1
mirror=${2:-http://deb.debian.org/debian}

# A node reaches no package index, so whatever a role installs has to lie here. The second step is apt's, because
# debootstrap cannot choose between alternatives.
debootstrap --variant=minbase --include=ca-certificates bookworm "$root" "$mirror"
cp /etc/resolv.conf "$root/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # nothing is started while the image is made
chmod 0755 "$root/usr/sbin/policy-rc.d"
{
  printf 'path-exclude=/usr/share/%s/*\n' doc man locale
  echo force-unsafe-io # an image that is not finished is thrown away
} >"$root/etc/dpkg/dpkg.cfg.d/image"
DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install -y -q --no-install-recommends \
  systemd systemd-sysv dbus cloud-init python3 python3-venv python3-apt curl iproute2 procps sudo \
  chrony unattended-upgrades podman netavark aardvark-dns catatonit \
  prometheus prometheus-alertmanager prometheus-node-exporter prometheus-pushgateway
chroot "$root" apt-get clean
rm -rf "$root/usr/sbin/policy-rc.d" "$root/var/lib/apt/lists" "$root/usr/share/doc" "$root/usr/share/man" \
  "$root/usr/share/locale" "$root/etc/machine-id" "$root/var/lib/dbus/machine-id"
mkdir "$root/var/lib/apt/lists"
: >"$root/etc/machine-id" # each machine makes its own
: >"$root/etc/resolv.conf"

# Of cloud-init what a node uses: files and a command. The rest costs seconds of a boot, or wants devices.
cat >"$root/etc/cloud/cloud.cfg" <<'CONFIG'
users: []
disable_root: true
preserve_hostname: true
network: {config: disabled}
cloud_init_modules: [write-files]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user, final-message]
system_info: {distro: debian, paths: {cloud_dir: /var/lib/cloud, templates_dir: /etc/cloud/templates}}
CONFIG
rm -f "$root/etc/cloud/cloud.cfg.d/90_dpkg.cfg" # where to look for user data; each machine is told
# On EC2 the firmware says that it is EC2, and only then does cloud-init ask for the token that IMDSv2 wants.
# A container has no firmware.
sed -i 's/^def identify_aws(data):$/&\n    return CloudNames.AWS/' \
  "$root/usr/lib/python3/dist-packages/cloudinit/sources/DataSourceEc2.py"
rm -rf "$root/usr/lib/python3/dist-packages/cloudinit/sources/__pycache__"

# Devices, terminals and the network are the engine's.
chroot "$root" systemctl mask -q systemd-udevd.service systemd-udev-trigger.service systemd-udevd-control.socket \
  systemd-udevd-kernel.socket getty.target console-getty.service e2scrub_all.timer e2scrub_reap.service fstrim.timer \
  podman-auto-update.service podman-auto-update.timer podman-restart.service
# What a role installs on some hosts is on all of them here: the role enables it where it belongs.
chroot "$root" systemctl disable -q prometheus.service prometheus-alertmanager.service \
  prometheus-node-exporter.service prometheus-pushgateway.service podman.socket podman.service
