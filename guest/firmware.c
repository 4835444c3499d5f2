/* Counts the boots in a variable of the UEFI firmware, which must move with the guest as its disks do. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <unistd.h>

#include "guest.h"

#define VARIABLES "/sys/firmware/efi/efivars"
#define BOOTS VARIABLES "/Boots-57484947-0000-4000-8000-000000000003"

/* As the kernel shows a variable: its attributes (UEFI 2.10, 8.2: kept over a boot, for all), then its content. */
struct variable {
    uint32_t attributes, boots;
};

void count_boots(void)
{
    struct variable found = {7, 0};
    int fd, protected = 0;
    if (access(VARIABLES, F_OK))
        return; /* a BIOS */
    load_module("efivarfs");
    if (mount("efivarfs", VARIABLES, "efivarfs", 0, "")) {
        say("WRITER FAIL efivarfs errno=%d", errno);
        return;
    }
    fd = open(BOOTS, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        /* Linux protects what it does not know, because some machines do not start without what they wrote there. */
        if (read(fd, &found, sizeof found) != sizeof found || ioctl(fd, FS_IOC_SETFLAGS, &protected))
            say("WRITER FAIL boots errno=%d", errno);
        close(fd);
    }
    found.boots++;
    begin_write();
    fd = open(BOOTS, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, &found, sizeof found) != sizeof found)
        say("WRITER FAIL boots errno=%d", errno);
    else
        say("WRITER FIRMWARE uefi boots=%u", found.boots);
    close(fd);
    end_write();
}
