/* The least a relay can be: accept, connect, and two threads that splice(2) through a pipe each.
 * `splice LISTEN PORT TO PORT`. Says "ready"; serves until it is killed. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define PIPE (1 << 20)

struct way {
    int from, to;
};

static struct sockaddr_in at(const char *address, const char *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};

    inet_pton(AF_INET, address, &a.sin_addr);
    return a;
}

static void *move(void *argument)
{
    struct way *way = argument;
    int pipe[2];

    if (pipe2(pipe, 0) == 0) {
        fcntl(pipe[1], F_SETPIPE_SZ, PIPE);
        for (;;) {
            ssize_t count = splice(way->from, NULL, pipe[1], NULL, PIPE, SPLICE_F_MOVE);

            if (count <= 0)
                break;
            while (count > 0) {
                ssize_t sent = splice(pipe[0], NULL, way->to, NULL, count, SPLICE_F_MOVE);

                if (sent <= 0)
                    goto over;
                count -= sent;
            }
        }
    over:
        close(pipe[0]);
        close(pipe[1]);
    }
    shutdown(way->to, SHUT_WR);
    return NULL;
}

static void *serve(void *argument)
{
    struct way *here = argument, back = {here->to, here->from};
    pthread_t thread;

    pthread_create(&thread, NULL, move, &back);
    move(here);
    pthread_join(thread, NULL);
    close(here->from);
    close(here->to);
    free(here);
    return NULL;
}

int main(int argc, char **argv)
{
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in own, to;

    if (argc != 5)
        return 2;
    own = at(argv[1], argv[2]);
    to = at(argv[3], argv[4]);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&own, sizeof own) || listen(listener, 64))
        return 1;
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct way *way = malloc(sizeof *way);
        pthread_t thread;

        way->from = accept(listener, NULL, NULL);
        way->to = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(way->from, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(way->to, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (way->from < 0 || connect(way->to, (struct sockaddr *)&to, sizeof to)) {
            close(way->from);
            close(way->to);
            free(way);
            continue;
        }
        pthread_create(&thread, NULL, serve, way);
        pthread_detach(thread);
    }
}
