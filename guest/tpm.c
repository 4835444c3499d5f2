/* Counts the boots in the TPM, which must move with the guest as its disks do: a TPM that is lost begins anew.
 *
 * The commands are those of the TPM 2.0 Library, part 3. A number is big-endian; what has a size begins with it.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "guest.h"

#define DEVICE "/dev/tpm0"
#define SESSIONS 0x8002
#define NV_DEFINE_SPACE 0x12a
#define NV_INCREMENT 0x134
#define NV_READ 0x14e
#define OWNER 0x40000001
#define BOOTS 0x01800057 /* of the range that is the owner's */
#define COUNTER 0x02040014 /* a counter that whoever knows its (empty) password may raise and read */
#define SHA256 0x000b
#define NV_DEFINED 0x14c

/* One command, as it is put together, and then its answer. */
struct command {
    size_t length;
    uint8_t bytes[256];
};

static void put(struct command *command, int size, uint32_t value)
{
    uint32_t big = htobe32(value);
    memcpy(command->bytes + command->length, (uint8_t *)&big + 4 - size, size);
    command->length += size;
}

/* Its head, whose length is written when it is known; up to two handles; a session with an empty password. */
static void begin(struct command *command, uint32_t code, uint32_t handle, uint32_t other)
{
    command->length = 0;
    put(command, 2, SESSIONS);
    put(command, 4, 0);
    put(command, 4, code);
    put(command, 4, handle);
    if (other)
        put(command, 4, other);
    put(command, 4, 9);
    put(command, 4, 0x40000009);
    put(command, 2, 0);
    put(command, 1, 0);
    put(command, 2, 0);
}

/* Returns the TPM's code, 0 for success; an error of the kernel is told as its negative number. */
static int ask(int fd, struct command *command)
{
    uint32_t length = htobe32(command->length), code;
    memcpy(command->bytes + 2, &length, sizeof length);
    if (write(fd, command->bytes, command->length) != (ssize_t)command->length)
        return -errno;
    ssize_t got = read(fd, command->bytes, sizeof command->bytes);
    if (got < 10)
        return got < 0 ? -errno : -EIO;
    command->length = got;
    memcpy(&code, command->bytes + 6, sizeof code);
    return be32toh(code);
}

static int define_counter(int fd)
{
    struct command command;
    begin(&command, NV_DEFINE_SPACE, OWNER, 0);
    put(&command, 2, 0);  /* its password */
    put(&command, 2, 14); /* the size of what follows */
    put(&command, 4, BOOTS);
    put(&command, 2, SHA256);
    put(&command, 4, COUNTER);
    put(&command, 2, 0); /* no policy */
    put(&command, 2, 8);
    int code = ask(fd, &command);
    return code == NV_DEFINED ? 0 : code;
}

static int raise_counter(int fd)
{
    struct command command;
    begin(&command, NV_INCREMENT, BOOTS, BOOTS);
    return ask(fd, &command);
}

static int read_counter(int fd, uint64_t *value)
{
    struct command command;
    begin(&command, NV_READ, BOOTS, BOOTS);
    put(&command, 2, sizeof *value);
    put(&command, 2, 0);
    int code = ask(fd, &command);
    if (code)
        return code;
    if (command.length < 16 + sizeof *value)
        return -EIO;
    memcpy(value, command.bytes + 16, sizeof *value); /* behind the head, the size of the answer and its own */
    *value = be64toh(*value);
    return 0;
}

static uint64_t boots;

void count_boots_in_tpm(void)
{
    int code, fd = open(DEVICE, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return; /* it has none */
    begin_write();
    if ((code = define_counter(fd)) || (code = raise_counter(fd)) || (code = read_counter(fd, &boots)))
        say("WRITER FAIL tpm code=%d", code);
    else
        say("WRITER TPM boots=%llu", (unsigned long long)boots);
    end_write();
    close(fd);
}

void ask_tpm_again(void)
{
    uint64_t found = 0;
    if (!boots)
        return;
    int fd = open(DEVICE, O_RDWR | O_CLOEXEC), code = fd < 0 ? -errno : read_counter(fd, &found);
    if (code || found != boots)
        say("WRITER FAIL tpm code=%d boots=%llu", code, (unsigned long long)found);
    else
        say("WRITER TPM still=%llu", (unsigned long long)found);
    close(fd);
}
