package state

// ClosingGroups are the multicast groups of NETLINK_SOCK_DIAG that report closed UDP sockets:
// SKNLGRP_INET_UDP_DESTROY and SKNLGRP_INET6_UDP_DESTROY (linux/sock_diag.h). To join them needs
// CAP_NET_ADMIN over the network namespace.
const ClosingGroups = 1<<(2-1) | 1<<(4-1)
