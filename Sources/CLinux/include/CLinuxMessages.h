// Packets between processes of one service, with a descriptor each where one goes along.
#ifndef STILLPOINT_CLINUX_MESSAGES_H
#define STILLPOINT_CLINUX_MESSAGES_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// Sends one packet; `descriptor` goes with it unless it is negative. What send(2) returns.
ssize_t cl_send_packet(int socket, const void *bytes, size_t count, int descriptor);

// Receives one packet and the descriptor that came with it, -1 when none did. What recv(2) returns,
// and -1 with EBADMSG for a packet that was cut off, or that came with more than one descriptor.
ssize_t cl_receive_packet(int socket, void *bytes, size_t capacity, int *descriptor);

// A listening socket for packets at `name` in a directory, whatever the length of its path;
// replaces what is there. -1 and errno on failure.
int cl_listen_in(int directory, const char *name);

// Connects to such a socket. -1 and errno on failure.
int cl_connect_in(int directory, const char *name);

// Accepts a connection of this user or root; -1 with EPERM closes another's.
int cl_accept_own(int socket);

// Has the kernel send again what a FUSE server that is gone had read and not answered
// (FUSE_NOTIFY_RESEND, Linux 6.9). 0, or -1 and errno: EINVAL on a kernel that cannot.
int cl_fuse_resend(int fd);

#endif
