/* Verifies what earlier boots wrote, then appends numbered records until the power goes. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

#define RECORD_MAGIC 0x57524954u
#define FILL_MAGIC 0x57464c4cu
#define PAGE_MAGIC 0x57504745u
#define SECTOR 512
#define PAGE 4096
#define DIRTY_BLOCK (64 * 1024)
#define DIRTY_SPAN (64 * MIB)
#define DISK2_START MIB

/* On the disk; `crc` is over the whole struct with crc = 0. */
struct record {
    uint32_t magic, crc;
    uint64_t seq, real_ns, mono_ns;
    uint32_t boot;
    uint8_t pattern[92];
};
_Static_assert(sizeof(struct record) == 128, "a record is 128 bytes");

struct fill_header {
    uint32_t magic, crc;
    uint64_t mib, seed;
};

struct page {
    uint32_t magic, crc;
    uint64_t number, generation, words[(PAGE - 24) / 8];
};
_Static_assert(sizeof(struct page) == PAGE, "a page is 4 KiB");

static int root_disk = -1, second_disk = -1;
static uint64_t second_disk_slots;

static uint64_t clock_ns(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static uint32_t crc32(const void *data, size_t size)
{
    static uint32_t table[256];
    const uint8_t *bytes = data;
    uint32_t crc = ~0u;
    if (!table[255])
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int bit = 0; bit < 8; bit++)
                c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
            table[i] = c;
        }
    while (size--)
        crc = table[(crc ^ *bytes++) & 255] ^ (crc >> 8);
    return ~crc;
}

/* Sets or checks the checksum in the second word of any of the structs above. */
static uint32_t checksum(void *item, size_t size)
{
    uint32_t *crc = (uint32_t *)item + 1, kept = *crc, computed;
    *crc = 0;
    computed = crc32(item, size);
    *crc = kept;
    return computed;
}

/* One word of an incompressible sequence; the same (seed, index) always gives the same word. */
static inline uint64_t noise(uint64_t seed, uint64_t index)
{
    uint64_t x = seed + index * 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    return x ^ (x >> 27);
}

static uint64_t device_size(int fd)
{
    uint64_t size = 0;
    ioctl(fd, BLKGETSIZE64, &size);
    return size;
}

/* What a resize has changed, as the guest sees it; of the memory, the kernel keeps a part for itself. */
static void report_room(void)
{
    struct sysinfo info = {0};
    sysinfo(&info);
    say("WRITER ROOM vda_mib=%llu ram_mib=%llu", (unsigned long long)(device_size(root_disk) / MIB),
        (unsigned long long)info.totalram * info.mem_unit / MIB);
}

/* Where the image ends and the raw space of the ballast begins; the build says where. */
static uint64_t image_end(void)
{
    return IMAGE_MIB * MIB;
}

/* ---- the ballast: deterministic noise behind the image ---------------------------------------------------- */

/*
 * Every block is the same noise under a key of its own: no block equals or resembles another, and checking one costs
 * the emulated processor two operations a word, so that a boot with a large ballast stays short.
 */
static uint64_t ballast[MIB / 8];

static uint64_t block_offset(uint64_t number)
{
    return image_end() + (number + 1) * MIB; /* the header has the first MiB */
}

static int write_fill(uint64_t mib, uint64_t seed, uint64_t *block)
{
    struct fill_header header = {.magic = FILL_MAGIC, .mib = mib, .seed = seed};
    for (uint64_t i = 0; i < mib; i++) {
        uint64_t key = noise(~seed, i);
        for (size_t w = 0; w < MIB / 8; w++)
            block[w] = ballast[w] ^ key;
        begin_write();
        ssize_t written = pwrite(root_disk, block, MIB, block_offset(i));
        end_write();
        if (written != MIB)
            return -1;
    }
    /* The header comes last: a fill that was cut short is made again, never verified. */
    header.crc = checksum(&header, sizeof header);
    begin_write();
    int failed = fsync(root_disk) || pwrite(root_disk, &header, sizeof header, image_end()) != sizeof header ||
                 fsync(root_disk);
    end_write();
    return failed ? -1 : 0;
}

static uint64_t count_bad_blocks(uint64_t mib, uint64_t seed, uint64_t *block)
{
    uint64_t bad = 0;
    for (uint64_t i = 0; i < mib; i++) {
        uint64_t key = noise(~seed, i), difference = 0;
        if (pread(root_disk, block, MIB, block_offset(i)) != MIB)
            difference = 1;
        for (size_t w = 0; w < MIB / 8; w++)
            difference |= block[w] ^ ballast[w] ^ key;
        bad += difference != 0;
    }
    return bad;
}

static void fill(uint64_t mib)
{
    static uint64_t block[MIB / 8];
    struct fill_header header = {0};
    uint64_t bad = 0;
    int made;
    if (block_offset(mib) > device_size(root_disk)) {
        say("WRITER FAIL fill_mib=%llu does not fit behind the image", (unsigned long long)mib);
        return;
    }
    made = pread(root_disk, &header, sizeof header, image_end()) == sizeof header && header.magic == FILL_MAGIC &&
           header.crc == checksum(&header, sizeof header);
    if (!made) {
        header.mib = mib;
        header.seed = clock_ns(CLOCK_REALTIME);
    }
    for (size_t w = 0; w < MIB / 8; w++)
        ballast[w] = noise(header.seed, w);
    if (made) {
        bad = count_bad_blocks(header.mib, header.seed, block);
    } else if (write_fill(mib, header.seed, block)) {
        say("WRITER FAIL fill errno=%d", errno);
        return;
    }
    say("WRITER FILL mib=%llu bad=%llu", (unsigned long long)header.mib, (unsigned long long)bad);
}

/* ---- pages that change all the time ----------------------------------------------------------------------- */

struct dirty_area {
    uint64_t start, blocks, kib_per_second;
};

static void verify_dirty(const struct dirty_area *area)
{
    static struct page pages[DIRTY_BLOCK / PAGE];
    uint64_t seen = 0, bad = 0;
    for (uint64_t b = 0; b < area->blocks; b++) {
        if (pread(root_disk, pages, sizeof pages, area->start + b * DIRTY_BLOCK) != sizeof pages)
            continue;
        for (uint64_t i = 0; i < DIRTY_BLOCK / PAGE; i++) {
            if (!pages[i].magic && !pages[i].number)
                continue; /* never written */
            seen++;
            bad += pages[i].magic != PAGE_MAGIC || pages[i].number != b * (DIRTY_BLOCK / PAGE) + i ||
                   pages[i].crc != checksum(&pages[i], PAGE);
        }
    }
    say("WRITER DIRTY pages=%llu bad=%llu", (unsigned long long)seen, (unsigned long long)bad);
}

/* Rewrites blocks in a scattered order, at the rate that the user data asks for. */
static void *keep_dirtying(void *argument)
{
    static struct page pages[DIRTY_BLOCK / PAGE];
    const struct dirty_area *area = argument;
    uint64_t start = clock_ns(CLOCK_MONOTONIC), seed = clock_ns(CLOCK_REALTIME);
    int fd = open("/dev/vda", O_WRONLY | O_DSYNC | O_CLOEXEC);
    for (uint64_t n = 1; fd >= 0; n++) {
        uint64_t block = noise(seed, n) % area->blocks;
        for (uint64_t i = 0; i < DIRTY_BLOCK / PAGE; i++) {
            pages[i] = (struct page){PAGE_MAGIC, 0, block * (DIRTY_BLOCK / PAGE) + i, n, {0}};
            for (size_t w = 0; w < sizeof pages[i].words / 8; w++)
                pages[i].words[w] = noise(seed ^ n, i * PAGE + w);
            pages[i].crc = checksum(&pages[i], PAGE);
        }
        begin_write();
        if (pwrite(fd, pages, sizeof pages, area->start + block * DIRTY_BLOCK) != sizeof pages)
            say("WRITER FAIL dirty errno=%d", errno);
        end_write();
        uint64_t due = start + n * (DIRTY_BLOCK / 1024) * 1000000000ull / area->kib_per_second;
        struct timespec until = {(time_t)(due / 1000000000ull), (long)(due % 1000000000ull)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    }
    return NULL;
}

static void prepare_dirty(uint64_t kib_per_second, uint64_t fill_mib, pthread_t *thread)
{
    static struct dirty_area area;
    uint64_t size = device_size(root_disk);
    area.kib_per_second = kib_per_second;
    area.start = image_end() + (fill_mib ? fill_mib + 1 : 0) * MIB;
    if (area.start + DIRTY_BLOCK > size) {
        say("WRITER FAIL dirty_kib has no room behind the image");
        return;
    }
    area.blocks = (size - area.start > DIRTY_SPAN ? DIRTY_SPAN : size - area.start) / DIRTY_BLOCK;
    verify_dirty(&area);
    pthread_create(thread, NULL, keep_dirtying, &area);
}

/* ---- the records ------------------------------------------------------------------------------------------ */

static int record_is_good(struct record *record, uint64_t seq)
{
    return record->magic == RECORD_MAGIC && record->seq == seq && record->crc == checksum(record, sizeof *record);
}

/* Reads the file back; returns the number of whole records, and the boot that comes next. */
static uint64_t verify_records(int fd, uint32_t *boot)
{
    struct record record;
    uint64_t total = 0, bad = 0, last = 0;
    int torn = 0;
    ssize_t got;
    while ((got = pread(fd, &record, sizeof record, total * sizeof record)) > 0) {
        if (got < (ssize_t)sizeof record) {
            torn = 1;
            begin_write();
            if (ftruncate(fd, total * sizeof record))
                say("WRITER FAIL truncate errno=%d", errno);
            end_write();
            break;
        }
        total++;
        if (record_is_good(&record, total)) {
            last = record.seq;
            *boot = record.boot;
        } else {
            bad++;
        }
    }
    ++*boot;
    say("WRITER VERIFY total=%llu intact=%llu torn=%d bad=%llu last=%llu boot=%u", (unsigned long long)total,
        (unsigned long long)(total - bad), torn, (unsigned long long)bad, (unsigned long long)last, *boot);
    last_durable = last;
    return total;
}

static int is_someone_elses(int fd)
{
    char start[PAGE], iso[6] = "";
    if (pread(fd, start, sizeof start, 0) != sizeof start || pread(fd, iso, 5, 16 * 2048 + 1) != 5)
        return 1;
    return !memcmp(start + PAGE - 10, "SWAPSPACE2", 10) || !memcmp(iso, "CD001", 5);
}

/* The second disk is the first one after vda that is neither swap nor the config drive. */
static void open_second_disk(void)
{
    char path[16];
    for (char letter = 'b'; letter <= 'z' && second_disk < 0; letter++) {
        snprintf(path, sizeof path, "/dev/vd%c", letter);
        int fd = open(path, O_RDWR | O_DSYNC | O_CLOEXEC);
        if (fd >= 0 && is_someone_elses(fd))
            close(fd);
        else
            second_disk = fd;
    }
    if (second_disk < 0)
        say("WRITER FAIL no second disk");
    else
        second_disk_slots = (device_size(second_disk) - DISK2_START) / SECTOR;
}

/*
 * Record N is written to the second disk before the first, so the second may hold one more, never fewer; those
 * that it lacks count as bad.
 */
static void verify_second_disk(uint64_t first_disk_total)
{
    static uint8_t chunk[MIB];
    uint64_t total = 0, bad = 0, slot = 0;
    for (int more = 1; more && slot < second_disk_slots;) {
        ssize_t got = pread(second_disk, chunk, sizeof chunk, DISK2_START + slot * SECTOR);
        for (ssize_t at = 0; more && at + SECTOR <= got; at += SECTOR, slot++) {
            struct record *record = (struct record *)(chunk + at);
            more = record->magic == RECORD_MAGIC || slot < first_disk_total;
            total += record->magic == RECORD_MAGIC;
            bad += more && !record_is_good(record, slot + 1);
        }
        more = more && got == sizeof chunk;
    }
    say("WRITER DISK2 total=%llu bad=%llu", (unsigned long long)total, (unsigned long long)bad);
}

static int write_record(int file, struct record *record)
{
    uint8_t sector[SECTOR] = {0};
    memcpy(sector, record, sizeof *record);
    if (second_disk >= 0 && record->seq <= second_disk_slots &&
        pwrite(second_disk, sector, SECTOR, DISK2_START + (record->seq - 1) * SECTOR) != SECTOR)
        return -1;
    off_t where = (off_t)(record->seq - 1) * sizeof *record;
    return pwrite(file, record, sizeof *record, where) == sizeof *record ? 0 : -1;
}

/* A kernel panic, as a user's guest may have one. */
static void crash(void)
{
    int fd = open("/proc/sysrq-trigger", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "c", 1) != 1)
        say("WRITER FAIL crash errno=%d", errno);
}

static void write_forever(int file, uint64_t seq, uint32_t boot)
{
    const uint64_t first = seq;
    useconds_t interval = 1000 * option_number("writer.interval_ms", 50);
    uint64_t crash_at = option_number("crash_at", 0);
    for (;;) {
        /* Not at the next boot, which begins with the record behind it. */
        if (crash_at && seq == crash_at + 1 && seq != first)
            crash();
        struct record record = {.magic = RECORD_MAGIC, .seq = seq, .boot = boot};
        record.real_ns = clock_ns(CLOCK_REALTIME);
        record.mono_ns = clock_ns(CLOCK_MONOTONIC);
        for (size_t i = 0; i < sizeof record.pattern; i++)
            record.pattern[i] = (uint8_t)noise(seq, i);
        record.crc = checksum(&record, sizeof record);
        begin_write();
        if (write_record(file, &record)) {
            say("WRITER FAIL seq=%llu errno=%d", (unsigned long long)seq, errno);
        } else {
            last_durable = seq;
            say("WRITER seq=%llu mono_ms=%llu", (unsigned long long)seq,
                (unsigned long long)(record.mono_ns / 1000000));
            seq++;
        }
        end_write();
        usleep(interval);
    }
}

void verify_and_write(void)
{
    uint32_t boot = 0;
    uint64_t mib = option_number("fill_mib", 0), kib_per_second = option_number("dirty_kib", 0);
    pthread_t thread;
    int file = open("/data/records", O_RDWR | O_CREAT | O_DSYNC | O_CLOEXEC, 0644);
    root_disk = open("/dev/vda", O_RDWR | O_CLOEXEC);
    report_room();
    uint64_t total = verify_records(file, &boot);
    if (mib)
        fill(mib);
    if (option_number("second_disk", 0)) {
        open_second_disk();
        if (second_disk >= 0)
            verify_second_disk(total);
    }
    if (kib_per_second)
        prepare_dirty(kib_per_second, mib, &thread);
    say("WRITER READY");
    write_forever(file, total + 1, boot);
}
