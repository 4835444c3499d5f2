#!/bin/bash
# Builds the test guest's disk image: build.sh OUT.qcow2 [bios|uefi]
#
# Debian's cloud kernel, an initrd with one static program as PID 1, a boot loader and an empty ext4. Needs no root and
# mounts nothing; two builds from the same packages are identical. The kernel package is kept in
# ${WHIMBREL_CACHE:-~/.cache/whimbrel}; KERNEL_PACKAGE names another one than the newest.
set -euo pipefail
umask 022
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUT.qcow2 [bios|uefi]}
firmware=${2:-bios}
cache=${WHIMBREL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/whimbrel}
export SOURCE_DATE_EPOCH=946684800 LC_ALL=C TZ=UTC
epoch=@$SOURCE_DATE_EPOCH
boot_mib=24 data_mib=70            # MBR and alignment take 1 MiB more, and 1 MiB is left at the end
image_mib=$((1 + boot_mib + data_mib + 1))
trim_at_kib=512 trim_kib=128       # filled in the image, so that a guest has something of it to trim

# In the order in which they must be loaded; a name that the kernel has built in, or lacks, is passed over.
modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk failover net_failover
 virtio_net button evdev efivarfs pvpanic pvpanic-mmio pvpanic-pci scsi_common scsi_mod libata ata_piix cdrom sr_mod isofs"

fail() { echo "guest/build.sh: $*" >&2; exit 1; }
for tool in gcc strip objcopy cpio sfdisk mkfs.vfat mcopy syslinux mke2fs qemu-img dpkg apt-get; do
    PATH=$PATH:/usr/sbin:/sbin command -v $tool >/dev/null || fail "$tool is missing; install the packages of packages.apt"
done
export PATH=$PATH:/usr/sbin:/sbin

fetch_kernel() {
    package=${KERNEL_PACKAGE:-$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        awk '/Depends: linux-image-/ {print $2; exit}')}
    [ -n "$package" ] || fail "no package linux-image-cloud-amd64 is known; run apt-get update, or set KERNEL_PACKAGE"
    kernel=$cache/$package
    [ -d "$kernel" ] && return
    mkdir -p "$cache"
    local unpacked
    unpacked=$(mktemp -d "$cache/unpack.XXXXXX")
    (cd "$unpacked" && apt-get -qq download "$package" 2>apt.log) ||
        fail "cannot download $package: $(tail -1 "$unpacked/apt.log")"
    dpkg -x "$unpacked"/*.deb "$unpacked/tree"
    # Another build may have been faster; both unpacked the same.
    mv -T "$unpacked/tree" "$kernel" 2>/dev/null || [ -d "$kernel" ] || fail "cannot write $kernel"
    rm -rf "$unpacked"
}

make_initrd() {
    local root=$work/root name file
    mkdir -p "$root/modules" "$root/dev"
    gcc -std=gnu11 -static -O2 -s -Wall -Wextra -Werror -Wl,--build-id=none -DIMAGE_MIB=$image_mib \
        -DTRIM_AT_KIB=$trim_at_kib -DTRIM_KIB=$trim_kib \
        -o "$root/init" "$here"/{init,firmware,tpm,network,trim,writer,json}.c -lpthread
    for name in $modules; do
        file=$(find "$kernel" -path '*/modules/*' -name "$name.ko*" -print -quit)
        case $file in
            *.xz) xz -dc "$file" > "$root/modules/$name.ko" ;;
            *.ko) cp "$file" "$root/modules/$name.ko" ;;
            *) continue ;;
        esac
        strip -g "$root/modules/$name.ko"
    done
    find "$root" -exec touch -h -d $epoch {} +
    (cd "$root" && find . | sort | cpio -o -H newc -R 0:0 --reproducible --quiet | gzip -9n) > "$work/initrd.gz"
}

# A panic must stay visible and stop the guest: no panic= timeout, and an oops counts as one.
parameters="console=ttyS0 quiet panic=0 oops=panic mitigations=off tsc=reliable random.trust_cpu=on"

make_boot_bios() {
    cat > "$work/syslinux.cfg" <<X
DEFAULT guest
PROMPT 0
TIMEOUT 0
SERIAL 0 115200
LABEL guest
 KERNEL vmlinuz
 INITRD initrd.gz
 APPEND $parameters
X
    cp "$kernel"/boot/vmlinuz-* "$work/vmlinuz"
    touch -d $epoch "$work"/{vmlinuz,initrd.gz,syslinux.cfg}
    mcopy -m -i "$work/boot" "$work"/{vmlinuz,initrd.gz,syslinux.cfg} ::
    syslinux --install "$work/boot"
}

# Kernel, initrd and parameters in one program, where UEFI looks on a disk that it has never seen. (The addresses are
# those of the UAPI group's "Unified Kernel Image" in the layout of systemd 252, whose stub starts it.)
make_boot_uefi() {
    local stub=/usr/lib/systemd/boot/efi/linuxx64.efi.stub
    [ -f $stub ] || fail "$stub is missing; install the packages of packages.apt"
    mkdir -p "$work/efi/boot"
    printf '%s' "$parameters" > "$work/cmdline"
    # The time in its head stays that of the stub, or no two builds would be alike.
    objcopy --preserve-dates --add-section .cmdline="$work/cmdline" --change-section-vma .cmdline=0x30000 \
        --add-section .linux="$(echo "$kernel"/boot/vmlinuz-*)" --change-section-vma .linux=0x2000000 \
        --add-section .initrd="$work/initrd.gz" --change-section-vma .initrd=0x3000000 \
        $stub "$work/efi/boot/bootx64.efi"
    touch -d $epoch "$work"/efi{,/boot{,/*}}
    mcopy -m -s -i "$work/boot" "$work/efi" ::
}

make_boot_partition() {
    truncate -s ${boot_mib}M "$work/boot"
    mkfs.vfat -F 16 -i 57484947 --invariant -n BOOT "$work/boot" >/dev/null
    "make_boot_$firmware"
}

make_data_partition() {
    truncate -s ${data_mib}M "$work/data"
    E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH mke2fs -q -t ext4 -m 0 -L DATA \
        -O ^metadata_csum_seed -U 57484947-0000-4000-8000-000000000002 \
        -E hash_seed=57484947-0000-4000-8000-000000000001,lazy_itable_init=0,nodiscard "$work/data"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fetch_kernel
make_initrd
make_boot_partition
make_data_partition
truncate -s ${image_mib}M "$work/disk"
sfdisk -q "$work/disk" <<X
label: dos
label-id: 0x57484947
start=1MiB, size=${boot_mib}MiB, type=e, bootable
start=$((1 + boot_mib))MiB, size=${data_mib}MiB, type=83
X
dd if=/usr/lib/syslinux/mbr/mbr.bin of="$work/disk" bs=440 count=1 conv=notrunc status=none
head -c ${trim_kib}K /dev/zero | tr '\0' w |
    dd of="$work/disk" bs=1K seek=$trim_at_kib conv=notrunc status=none
dd if="$work/boot" of="$work/disk" bs=1M seek=1 conv=notrunc,sparse status=none
dd if="$work/data" of="$work/disk" bs=1M seek=$((1 + boot_mib)) conv=notrunc,sparse status=none
# Written beside its place and renamed, so that a reader never sees half an image.
mkdir -p "$(dirname "$out")"
qemu-img convert -f raw -O qcow2 -o compat=1.1 "$work/disk" "$out.part"
mv "$out.part" "$out"
