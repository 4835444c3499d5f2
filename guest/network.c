/* Gives each interface the static address that the config drive names for its MAC, and announces it. */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <netinet/if_ether.h>
#include <netpacket/packet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "guest.h"

static int interface_of(const char *mac, char *name, size_t size)
{
    DIR *directory = opendir("/sys/class/net");
    struct dirent *entry;
    int found = 0;
    while (directory && !found && (entry = readdir(directory))) {
        char path[300], address[32];
        snprintf(path, sizeof path, "/sys/class/net/%s/address", entry->d_name);
        if (!read_text(path, address, sizeof address) || strncasecmp(address, mac, 17))
            continue;
        found = strlen(entry->d_name) < size;
        if (found)
            strcpy(name, entry->d_name);
    }
    if (directory)
        closedir(directory);
    return found;
}

/* Tells the bridges on the way where this address lives now. */
static void announce(const char *interface, struct in_addr address)
{
    struct ether_arp arp = {
        .ea_hdr = {htons(ARPHRD_ETHER), htons(ETH_P_IP), ETH_ALEN, 4, htons(ARPOP_REQUEST)},
    };
    struct ifreq request = {0};
    int fd = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, htons(ETH_P_ARP));
    snprintf(request.ifr_name, IFNAMSIZ, "%s", interface);
    ioctl(fd, SIOCGIFHWADDR, &request);
    memcpy(arp.arp_sha, request.ifr_hwaddr.sa_data, ETH_ALEN);
    memcpy(arp.arp_spa, &address, 4);
    memcpy(arp.arp_tpa, &address, 4);
    struct sockaddr_ll everyone = {
        .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ARP), .sll_halen = ETH_ALEN,
        .sll_ifindex = (int)if_nametoindex(interface), .sll_addr = {255, 255, 255, 255, 255, 255},
    };
    for (int i = 0; i < 3; i++)
        if (sendto(fd, &arp, sizeof arp, 0, (void *)&everyone, sizeof everyone) < 0)
            say("WRITER FAIL arp errno=%d", errno);
    close(fd);
}

static int set_address(int fd, struct ifreq *request, unsigned long what, const char *text)
{
    struct sockaddr_in *address = (struct sockaddr_in *)&request->ifr_addr;
    memset(address, 0, sizeof *address);
    address->sin_family = AF_INET;
    inet_pton(AF_INET, text, &address->sin_addr);
    return ioctl(fd, what, request);
}

static void add_default_route(int fd, const char *gateway)
{
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    ((struct sockaddr_in *)&route.rt_dst)->sin_family = AF_INET;
    ((struct sockaddr_in *)&route.rt_genmask)->sin_family = AF_INET;
    struct sockaddr_in *via = (struct sockaddr_in *)&route.rt_gateway;
    via->sin_family = AF_INET;
    inet_pton(AF_INET, gateway, &via->sin_addr);
    if (ioctl(fd, SIOCADDRT, &route) && errno != EEXIST)
        say("WRITER FAIL route errno=%d", errno);
}

/* Brings up one network of network_data.json on the interface that has its link's MAC address. */
static void bring_up(const char *network, const char *link)
{
    char ip[64] = "", netmask[64] = "255.255.255.0", mac[32] = "", mtu[16] = "1500", gateway[64];
    struct ifreq request = {0};
    json_text(json_get(network, "ip_address"), ip, sizeof ip);
    json_text(json_get(network, "netmask"), netmask, sizeof netmask);
    json_text(json_get(link, "ethernet_mac_address"), mac, sizeof mac);
    json_text(json_get(link, "mtu"), mtu, sizeof mtu);
    ip[strcspn(ip, "/")] = 0;
    if (!*ip || !interface_of(mac, request.ifr_name, IFNAMSIZ)) {
        say("WRITER FAIL no interface has mac=%s", mac);
        return;
    }
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    request.ifr_mtu = atoi(mtu);
    if (request.ifr_mtu >= 576 && ioctl(fd, SIOCSIFMTU, &request))
        say("WRITER FAIL mtu=%s errno=%d", mtu, errno);
    if (set_address(fd, &request, SIOCSIFADDR, ip) || set_address(fd, &request, SIOCSIFNETMASK, netmask))
        say("WRITER FAIL ip=%s errno=%d", ip, errno);
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    ioctl(fd, SIOCSIFFLAGS, &request);
    if (json_text(json_get(json_at(json_get(network, "routes"), 0), "gateway"), gateway, sizeof gateway))
        add_default_route(fd, gateway);
    close(fd);
    struct in_addr address;
    inet_pton(AF_INET, ip, &address);
    announce(request.ifr_name, address);
    say("WRITER NET ip=%s mtu=%s mac=%s", ip, mtu, mac);
}

void configure_network(void)
{
    char name[64], wanted[128], id[128], type[32];
    const char *networks = json_get(network_data, "networks"), *links = json_get(network_data, "links");
    struct ifreq loopback = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    ioctl(fd, SIOCSIFFLAGS, &loopback);
    close(fd);
    if (json_text(json_get(meta_data, "hostname"), name, sizeof name) && sethostname(name, strlen(name)))
        say("WRITER FAIL hostname errno=%d", errno);
    for (int i = 0; json_at(networks, i); i++) {
        const char *network = json_at(networks, i);
        if (!json_text(json_get(network, "type"), type, sizeof type) || strcmp(type, "ipv4"))
            continue;
        json_text(json_get(network, "link"), wanted, sizeof wanted);
        for (int k = 0; json_at(links, k); k++)
            if (json_text(json_get(json_at(links, k), "id"), id, sizeof id) && !strcmp(id, wanted))
                bring_up(network, json_at(links, k));
    }
}
