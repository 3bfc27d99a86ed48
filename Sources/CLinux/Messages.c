#define _GNU_SOURCE
#include "CLinux.h"

#include <stdio.h>
#include <sys/un.h>

ssize_t cl_send_packet(int socket, const void *bytes, size_t count, int descriptor) {
    struct iovec vector = {.iov_base = (void *)bytes, .iov_len = count};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr alignment;
    } control;
    memset(&control, 0, sizeof control);
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (descriptor >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
    }
    ssize_t sent;
    do sent = sendmsg(socket, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent;
}

ssize_t cl_receive_packet(int socket, void *bytes, size_t capacity, int *descriptor) {
    struct iovec vector = {.iov_base = bytes, .iov_len = capacity};
    union {
        char bytes[CMSG_SPACE(4 * sizeof(int))];
        struct cmsghdr alignment;
    } control;
    struct msghdr message = {.msg_iov = &vector,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    *descriptor = -1;
    ssize_t count;
    do count = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    while (count < 0 && errno == EINTR);
    if (count < 0) return -1;
    int number = 0;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header;
         header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        size_t length = header->cmsg_len - CMSG_LEN(0);
        for (size_t at = 0; at + sizeof(int) <= length; at += sizeof(int)) {
            int received;
            memcpy(&received, CMSG_DATA(header) + at, sizeof received);
            if (number++ == 0)
                *descriptor = received;
            else
                close(received);
        }
    }
    if (number <= 1 && !(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) return count;
    if (*descriptor >= 0) close(*descriptor);
    *descriptor = -1;
    errno = EBADMSG;
    return -1;
}

// A path through the directory's descriptor is short, however long the directory's own is.
static int address_in(int directory, const char *name, struct sockaddr_un *address) {
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    int length = snprintf(address->sun_path, sizeof address->sun_path, "/proc/self/fd/%d/%s",
                          directory, name);
    if (length > 0 && (size_t)length < sizeof address->sun_path) return 0;
    errno = ENAMETOOLONG;
    return -1;
}

int cl_listen_in(int directory, const char *name) {
    struct sockaddr_un address;
    if (address_in(directory, name, &address) < 0) return -1;
    int made = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (made < 0) return -1;
    (void)unlinkat(directory, name, 0);
    if (bind(made, (struct sockaddr *)&address, sizeof address) == 0 && listen(made, 8) == 0)
        return made;
    int failure = errno;
    close(made);
    errno = failure;
    return -1;
}

int cl_connect_in(int directory, const char *name) {
    struct sockaddr_un address;
    if (address_in(directory, name, &address) < 0) return -1;
    int made = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (made < 0) return -1;
    if (connect(made, (struct sockaddr *)&address, sizeof address) == 0) return made;
    int failure = errno;
    close(made);
    errno = failure;
    return -1;
}

int cl_accept_own(int socket) {
    int accepted = accept4(socket, NULL, NULL, SOCK_CLOEXEC);
    if (accepted < 0) return -1;
    struct ucred peer;
    socklen_t length = sizeof peer;
    if (getsockopt(accepted, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 &&
        (peer.uid == 0 || peer.uid == geteuid()))
        return accepted;
    close(accepted);
    errno = EPERM;
    return -1;
}

int cl_fuse_resend(int fd) {
    struct fuse_out_header message = {.len = sizeof message, .error = 7 /* FUSE_NOTIFY_RESEND */};
    return write(fd, &message, sizeof message) == (ssize_t)sizeof message ? 0 : -1;
}
