/* Prints the addresses of a name, as any program with a statically linked musl would find them:
   lookup 4|6 NAME */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
	struct addrinfo hints, *list, *a;
	char text[INET6_ADDRSTRLEN];
	int code;
	if (argc != 3)
		return 2;
	memset(&hints, 0, sizeof hints);
	hints.ai_family = argv[1][0] == '6' ? AF_INET6 : AF_INET;
	hints.ai_socktype = SOCK_STREAM;
	if ((code = getaddrinfo(argv[2], NULL, &hints, &list)) != 0) {
		fprintf(stderr, "%s\n", gai_strerror(code));
		return 1;
	}
	for (a = list; a; a = a->ai_next) {
		const void *from = a->ai_family == AF_INET6 ? (void *)&((struct sockaddr_in6 *)a->ai_addr)->sin6_addr
		                                            : (void *)&((struct sockaddr_in *)a->ai_addr)->sin_addr;
		printf("%s\n", inet_ntop(a->ai_family, from, text, sizeof text));
	}
	freeaddrinfo(list);
	return 0;
}
