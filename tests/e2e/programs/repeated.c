/* Calls whose path leads out of the machine's folders: interrupted, stopped, killed, from threads, by exec.
 * Prints one line for each, "NAME ok" or what was wrong. argv[1] is a folder for a FIFO.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define OUT "/dev/vfio/../.."

static char fifo[4096], dotted[4200];
static volatile int *hits;

static void count(int signal_number)
{
	(void)signal_number;
	(*hits)++;
}

static void handle(int flags)
{
	struct sigaction action = { .sa_handler = count, .sa_flags = flags };

	sigaction(SIGUSR1, &action, NULL);
	*hits = 0;
}

static void say(const char *name, int right)
{
	printf("%s %s (errno %d)\n", name, right ? "ok" : "WRONG", right ? 0 : errno);
}

/* A child that signals its parent until it has counted `enough`, then opens the FIFO's other end if `feed`. */
static pid_t pester(int enough, int feed)
{
	pid_t child = fork();

	if (child)
		return child;
	while (*hits < enough)
		kill(getppid(), SIGUSR1);
	if (feed) {
		int fd = open(fifo, O_WRONLY);

		_exit(write(fd, "x", 1) != 1);
	}
	for (;;) {
		kill(getppid(), SIGUSR1);
		usleep(1000);
	}
}

static void interrupted(void)
{
	pid_t child;
	int fd;

	handle(0);
	child = pester(1, 0);
	fd = open(dotted, O_RDONLY);
	say("interrupted", fd == -1 && errno == EINTR && *hits > 0);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	handle(SA_RESTART);
	child = pester(20, 1);
	fd = open(dotted, O_RDONLY);
	say("restarted", fd >= 0 && *hits >= 20);
	close(fd);
	waitpid(child, NULL, 0);
}

static void storm(void)
{
	pid_t child;
	int bad = 0;

	handle(SA_RESTART);
	child = pester(1, 0);
	for (int i = 0; i < 50; i++) {
		int fd = open(OUT "/etc/passwd", O_RDONLY);

		bad += fd < 0;
		close(fd);
	}
	say("storm", !bad && *hits > 0);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

static void *opens(void *unused)
{
	for (int i = 0; i < 30; i++) {
		int fd = open(OUT "/etc/passwd", O_RDONLY);
		char byte;

		if (fd < 0 || read(fd, &byte, 1) != 1)
			return (void *)1;
		close(fd);
	}
	return unused;
}

static void threads(void)
{
	pthread_t thread[4];
	void *bad = NULL, *result;

	for (int i = 0; i < 4; i++)
		pthread_create(&thread[i], NULL, opens, NULL);
	for (int i = 0; i < 4; i++) {
		pthread_join(thread[i], &result);
		bad = bad ? bad : result;
	}
	say("threads", !bad);
}

static void killed_and_stopped(void)
{
	int status, fd;
	pid_t child = fork();

	if (!child)
		_exit(open(dotted, O_RDONLY) >= 0 ? 1 : 2);
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
	say("killed", WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	child = fork();
	if (!child)
		_exit(open(dotted, O_RDONLY) >= 0 ? 7 : 8);
	kill(child, SIGSTOP);
	waitpid(child, &status, WUNTRACED);
	say("stopped", WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
	kill(child, SIGCONT);
	fd = open(fifo, O_WRONLY);
	waitpid(child, &status, 0);
	say("continued", WIFEXITED(status) && WEXITSTATUS(status) == 7);
	close(fd);
}

static void registers(void)
{
#ifdef __x86_64__
	const char *path = OUT "/etc/passwd";
	register long rdi asm("rdi") = AT_FDCWD;
	register long rsi asm("rsi") = (long)path;
	register long rdx asm("rdx") = O_RDONLY;
	register long r10 asm("r10") = 0x1234;
	long value = SYS_openat;

	asm volatile("syscall" : "+a"(value), "+r"(rdi), "+r"(rsi), "+r"(rdx), "+r"(r10) : : "rcx", "r11", "memory");
	say("registers", value >= 0 && rdi == AT_FDCWD && rsi == (long)path && rdx == O_RDONLY && r10 == 0x1234);
#else
	say("registers", 1);
#endif
}

static void images(void)
{
	int status;
	pid_t child = fork();

	if (!child) {
		execl(OUT "/bin/true", "true", NULL);
		_exit(9);
	}
	waitpid(child, &status, 0);
	say("exec", status == 0);
	child = vfork();
	if (!child) {
		execl(OUT "/bin/true", "true", NULL);
		_exit(9);
	}
	waitpid(child, &status, 0);
	say("vfork", status == 0);
	say("no exec", execl(OUT "/etc/passwd", "passwd", NULL) == -1 && errno == EACCES);
}

static void others(void)
{
	char path[5000] = OUT "/";
	struct stat one, two;
	mode_t mask = umask(037);
	int fd;

	while (strlen(path) < 4300)
		strcat(path, "aaaaaaaaaaaaaaaaaaaaaaaaa/");
	say("too long", open(path, O_RDONLY) == -1 && errno == ENAMETOOLONG);
	say("stat", stat(OUT "/dev/null", &one) == 0 && stat("/dev/null", &two) == 0 && one.st_ino == two.st_ino);
	snprintf(path, sizeof(path), "%s.new", dotted);
	fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0666);
	say("umask", fd >= 0 && fstat(fd, &one) == 0 && (one.st_mode & 0777) == 0640 && one.st_uid == geteuid());
	close(fd);
	say("unlink", unlink(path) == 0 && access(path, F_OK) == -1 && errno == ENOENT);
	say("self", readlink("/dev/vfio/../../proc/self", path, sizeof(path)) > 0 && atoi(path) == getpid());
	umask(mask);
}

int main(int argc, char **argv)
{
	if (argc != 2)
		return 2;
	setvbuf(stdout, NULL, _IONBF, 0);
	hits = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	snprintf(fifo, sizeof(fifo), "%s/fifo", argv[1]);
	snprintf(dotted, sizeof(dotted), OUT "%s", fifo);
	if (mkfifo(fifo, 0600))
		return 3;
	interrupted();
	storm();
	threads();
	killed_and_stopped();
	registers();
	images();
	others();
	return 0;
}
