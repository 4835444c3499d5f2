/*
 * PID 1 of the test guest: a witness for what a move does to a server's disk and network.
 *
 * It appends numbered records, each with a checksum, to a file in its own ext4 and prints a number on the serial
 * console only when that record is durable. At every boot it first reads all of them back and prints the verdict.
 * So whoever holds two consoles can tell, without trusting anyone, whether a write was lost, torn or repeated.
 *
 *   WRITER VERIFY total=N intact=N torn=N bad=N last=N boot=N    the records found at this boot
 *   WRITER FILL mib=N bad=N            the ballast behind the image (user data: fill_mib), in 1 MiB blocks
 *   WRITER DIRTY pages=N bad=N         the pages that are rewritten all the time (user data: dirty_kib)
 *   WRITER DISK2 total=N bad=N         the records on the second disk (user data: second_disk=1)
 *   WRITER ROOM vda_mib=N ram_mib=N    the size of the root disk and of the memory
 *   WRITER NET ip=A mtu=N mac=M        the address taken from the config drive
 *   WRITER FIRMWARE uefi boots=N       it booted by UEFI, whose variables say that this is boot N
 *   WRITER TPM boots=N                 it has a TPM, in which a counter says that this is boot N
 *   WRITER TPM still=N                 on the way down it says the same, wherever the guest has moved meanwhile
 *   WRITER TRIM before=W after=W       what it found where the image is filled (image or zeros), and after it had trimmed that
 *                                      (user data: trim=1)
 *   WRITER READY                       everything above is done; from here on records are written
 *   WRITER seq=N mono_ms=N             record N is on the disk
 *   WRITER FAIL ... | WRITER FATAL ... something that should not be; the guest goes on after FAIL, stops after FATAL
 *   WRITER DOWN last=N                 shut down in good order: record N is the last one, and this the last line
 *
 * The user data may also say acpi=ignore (deaf to the power button), crash_at=N (panic behind record N, once) and
 * writer.interval_ms=N (the pause between records, 50 if not said).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#include "guest.h"

static int console = STDOUT_FILENO;
volatile uint64_t last_durable;
static volatile int stopping;
static pthread_rwlock_t writing = PTHREAD_RWLOCK_INITIALIZER;
char network_data[16384], meta_data[16384];
static char user_data[8192];

void say(const char *format, ...)
{
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    /* One write per line: lines of two threads never mix. */
    if (write(console, line, length) != length)
        errno = 0;
}

size_t read_text(const char *path, char *into, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got, total = 0;
    if (fd < 0)
        return 0;
    while (total < (ssize_t)size - 1 && (got = read(fd, into + total, size - 1 - total)) > 0)
        total += got;
    into[total] = 0;
    close(fd);
    return total;
}

/* The value of a `key=value` line of the user data, or NULL. */
const char *option(const char *key)
{
    static char value[256];
    size_t length = strlen(key);
    for (const char *line = user_data; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
        if (!strncmp(line, key, length) && line[length] == '=') {
            snprintf(value, sizeof value, "%.*s", (int)strcspn(line + length + 1, "\r\n"), line + length + 1);
            return value;
        }
    return NULL;
}

uint64_t option_number(const char *key, uint64_t otherwise)
{
    const char *value = option(key);
    return value ? strtoull(value, NULL, 10) : otherwise;
}

void load_module(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "/modules/%s.ko", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST && errno != ENODEV)
        say("WRITER FAIL module=%s errno=%d", name, errno);
    close(fd);
}

static void load_modules(const char *names)
{
    char list[512], *rest = list, *name;
    snprintf(list, sizeof list, "%s", names);
    while ((name = strsep(&rest, " ")))
        load_module(name);
}

void begin_write(void)
{
    pthread_rwlock_rdlock(&writing);
    if (stopping) {
        pthread_rwlock_unlock(&writing);
        for (;;)
            pause();
    }
}

void end_write(void)
{
    pthread_rwlock_unlock(&writing);
}

static void power_off(void)
{
    /* The kernel takes the disks away with the power: a write that still runs then would fail, and look like a loss. */
    stopping = 1;
    pthread_rwlock_wrlock(&writing);
    sync();
    umount2("/data", MNT_DETACH);
    ask_tpm_again();
    say("WRITER DOWN last=%llu", (unsigned long long)last_durable);
    tcdrain(console);
    console = -1; /* What is read from here on, from disks that are gone, is no finding. */
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}

/* Waits for the ACPI power button, which the kernel shows as an input device. */
static void *watch_power_button(void *unused)
{
    struct pollfd inputs[8];
    int count = 0;
    for (int i = 0; i < 8; i++) {
        char path[32];
        snprintf(path, sizeof path, "/dev/input/event%d", i);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0)
            inputs[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
    if (!count)
        say("WRITER FAIL no power button");
    while (count && poll(inputs, count, -1) >= 0)
        for (int i = 0; i < count; i++) {
            struct input_event event;
            if (!(inputs[i].revents & POLLIN) || read(inputs[i].fd, &event, sizeof event) != sizeof event)
                continue;
            if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1)
                power_off();
        }
    return unused;
}

/* ---- the config drive ------------------------------------------------------------------------------------- */

static int has_label(const char *device, const char *label)
{
    char descriptor[2048];
    int fd = open(device, O_RDONLY | O_CLOEXEC), found = 0;
    if (fd < 0)
        return 0;
    if (pread(fd, descriptor, sizeof descriptor, 16 * 2048) == sizeof descriptor)
        found = !memcmp(descriptor + 1, "CD001", 5) && !strncasecmp(descriptor + 40, label, strlen(label));
    close(fd);
    return found;
}

static int find_config_drive(char *device, size_t size)
{
    for (char letter = 'b'; letter <= 'z'; letter++) {
        snprintf(device, size, "/dev/vd%c", letter);
        if (has_label(device, "config-2"))
            return 1;
    }
    /* The CD-ROM's drivers are loaded only when no virtio disk carries the label: they cost boot time. */
    load_modules("scsi_common scsi_mod libata ata_piix cdrom sr_mod");
    for (int tenth = 0; tenth < 30; tenth++, usleep(100000))
        for (int i = 0; i < 2; i++) {
            snprintf(device, size, "/dev/sr%d", i);
            if (has_label(device, "config-2"))
                return 1;
        }
    return 0;
}

static void read_config_drive(void)
{
    char device[32];
    if (!find_config_drive(device, sizeof device)) {
        say("WRITER FAIL no config drive");
        return;
    }
    load_module("isofs");
    mkdir("/config", 0755);
    if (mount(device, "/config", "iso9660", MS_RDONLY, "")) {
        say("WRITER FAIL config drive %s errno=%d", device, errno);
        return;
    }
    read_text("/config/openstack/latest/user_data", user_data, sizeof user_data);
    read_text("/config/openstack/latest/network_data.json", network_data, sizeof network_data);
    read_text("/config/openstack/latest/meta_data.json", meta_data, sizeof meta_data);
    umount("/config");
}

static void mount_all(void)
{
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/dev", 0755);
    mkdir("/data", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
}

static void open_console(void)
{
    struct termios settings;
    int fd = open("/dev/ttyS0", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return;
    console = fd;
    if (!tcgetattr(fd, &settings)) {
        cfmakeraw(&settings);
        tcsetattr(fd, TCSANOW, &settings);
    }
}

int main(void)
{
    pthread_t thread;
    mount_all();
    open_console();
    load_modules("virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk");
    load_modules("failover net_failover virtio_net button evdev pvpanic pvpanic-mmio pvpanic-pci");
    for (int i = 0; i < 500 && access("/dev/vda2", F_OK); i++)
        usleep(20000);
    if (mount("/dev/vda2", "/data", "ext4", 0, "")) {
        say("WRITER FATAL mount errno=%d", errno);
        for (;;)
            pause();
    }
    read_config_drive();
    const char *acpi = option("acpi");
    if (!acpi || strcmp(acpi, "ignore"))
        pthread_create(&thread, NULL, watch_power_button, NULL);
    configure_network();
    count_boots();
    count_boots_in_tpm();
    if (option_number("trim", 0))
        trim();
    verify_and_write();
    for (;;)
        pause();
}
