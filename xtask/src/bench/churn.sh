# One day of a guest: packages come, are upgraded and go, logs grow, pages of a data file are rewritten. Runs in a
# mount namespace of its own. Wants: PARENT IMAGE HOSTNAME SUITE SECURITY INSTALL REMOVE UPGRADE SEED MNT.
cp --sparse=always "$PARENT" "$IMAGE"
mkdir -p "$MNT"
mount -o loop,nouuid "$IMAGE" "$MNT" 2>/dev/null || mount -o loop "$IMAGE" "$MNT"
mount -t proc proc "$MNT/proc"
mount --bind /dev "$MNT/dev"
cp /etc/resolv.conf "$MNT/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' >"$MNT/usr/sbin/policy-rc.d"
chmod 755 "$MNT/usr/sbin/policy-rc.d"
if test -n "$SECURITY"; then
    echo "deb $SECURITY $SUITE-security main" >"$MNT/etc/apt/sources.list.d/security.list"
fi

inside() {
    DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$MNT" "$@" >>"$IMAGE.log" 2>&1 ||
        { tail -20 "$IMAGE.log" >&2; exit 1; }
}
inside apt-get -q update
if test -n "$UPGRADE"; then
    # shellcheck disable=SC2086
    inside apt-get -qy install --only-upgrade $UPGRADE
fi
if test -n "$INSTALL"; then
    # shellcheck disable=SC2086
    inside apt-get -qy --no-install-recommends install $INSTALL
fi
if test -n "$REMOVE"; then
    # shellcheck disable=SC2086
    inside apt-get -qy purge $REMOVE
fi

python3 - "$MNT" "$HOSTNAME" "$SEED" <<'PY'
import random, sys
top, host, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng = random.Random(seed)
with open(top + "/var/log/app.log", "a") as log:
    for n in range(20_000):
        log.write(f"{1700086400 + n} {host} app[{rng.randrange(9999)}]: request {rng.getrandbits(32):08x} took {rng.randrange(900)} ms\n")
with open(top + "/var/lib/app/data.db", "r+b") as data:
    for n in rng.sample(range(10_000), 300):
        data.seek(n * 4096 + 8)
        data.write(rng.randbytes(1500))
PY

umount "$MNT/dev" "$MNT/proc"
umount "$MNT"
rm -f "$IMAGE.log"
