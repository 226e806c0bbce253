# Installs a guest onto a fresh file system inside an image. Runs in a mount namespace of its own, so that every
# mount ends with it. Wants: IMAGE SIZE FS HOSTNAME SUITE MIRROR PACKAGES SEED MNT.
truncate --size "$SIZE" "$IMAGE"
case "$FS" in
ext4) mke2fs -q -t ext4 "$IMAGE" ;;
xfs) mkfs.xfs -q "$IMAGE" ;;
esac
mkdir -p "$MNT"
mount -o loop "$IMAGE" "$MNT"
mmdebstrap --quiet --mode=root --variant=apt --include="$PACKAGES" "$SUITE" "$MNT" "$MIRROR"
echo "$HOSTNAME" >"$MNT/etc/hostname"

# What the guest's work leaves behind: a log, and a data file made of pages.
mkdir -p "$MNT/var/lib/app" "$MNT/var/log"
python3 - "$MNT" "$HOSTNAME" "$SEED" <<'PY'
import random, sys
top, host, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng = random.Random(seed)
with open(top + "/var/log/app.log", "w") as log:
    for n in range(250_000):
        log.write(f"{1700000000 + n} {host} app[{rng.randrange(9999)}]: request {rng.getrandbits(32):08x} took {rng.randrange(900)} ms\n")
with open(top + "/var/lib/app/data.db", "wb") as data:
    for n in range(10_000):
        data.write(n.to_bytes(8, "little") + rng.randbytes(1500) + b"row;" * 400 + bytes(4096 - 8 - 1500 - 1600))
PY

# A template is trimmed once before it is used; later days leave their remnants behind.
fstrim "$MNT"
umount "$MNT"
