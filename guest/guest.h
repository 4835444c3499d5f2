/* What the parts of the test guest share. */
#ifndef GUEST_H
#define GUEST_H

#include <stddef.h>
#include <stdint.h>

#define MIB (1024ull * 1024)

/* init.c: the console, the drive with the settings, and the way down. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
size_t read_text(const char *path, char *into, size_t size);
const char *option(const char *key);
uint64_t option_number(const char *key, uint64_t otherwise);
extern char network_data[16384], meta_data[16384];
extern volatile uint64_t last_durable;
/* Whatever is put on a disk lies between these two, with what is said of it; on the way down none begins any more. */
void begin_write(void);
void end_write(void);

void load_module(const char *name);

/* firmware.c: a variable of the firmware that counts the boots, if it is UEFI. */
void count_boots(void);

/* trim.c: a part of the image that is trimmed away. */
void trim(void);

/* tpm.c: a counter in the TPM that counts them too, if there is one. */
void count_boots_in_tpm(void);
/* On the way down: does it still say the same, wherever the guest was moved meanwhile? */
void ask_tpm_again(void);

/* network.c: the addresses that the config drive names. */
void configure_network(void);

/* writer.c: the records, and what lies beside them on the disks. */
void verify_and_write(void);

/* json.c: just enough to read the config drive. Each function takes NULL for "nothing there" and hands it on. */
const char *json_get(const char *object, const char *key);
const char *json_at(const char *array, int index);
size_t json_text(const char *value, char *into, size_t size);

#endif
