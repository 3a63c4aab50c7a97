/*
 * The init of a shared PID namespace, and the reason why it costs a quarter of a megabyte: it runs as a
 * constructor, before the Go runtime exists. Called as "coracle-shim reap", it
 * gives up everything that a container sharing its namespace could take from it
 * (its root directory, its privileges, its being traced), and then waits for
 * orphans for ever.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void must(int ok, const char *what)
{
	if (ok)
		return;
	const char *why = strerror(errno);
	(void)!write(2, what, strlen(what));
	(void)!write(2, ": ", 2);
	(void)!write(2, why, strlen(why));
	(void)!write(2, "\n", 1);
	_exit(1);
}

/* An empty read-only root, so that /proc/1/root leads nowhere. */
static void leave_root(void)
{
	must(unshare(CLONE_NEWNS) == 0, "unshare");
	must(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "make / private");
	must(mount("none", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,nr_inodes=2,mode=555") == 0, "mount tmpfs");
	must(chdir("/proc") == 0, "chdir");
	must(syscall(SYS_pivot_root, ".", ".") == 0, "pivot_root");
	must(umount2(".", MNT_DETACH) == 0, "umount");
	must(mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0, "remount");
	must(chdir("/") == 0, "chdir /");
}

static void leave_privileges(void)
{
	for (int cap = 0; cap < 64; cap++)
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) != 0)
			break;
	must(setgroups(0, NULL) == 0, "setgroups");
	must(setresgid(65535, 65535, 65535) == 0, "setresgid");
	must(setresuid(65535, 65535, 65535) == 0, "setresuid");
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
	must(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0, "dumpable");
}

__attribute__((constructor(101))) static void reap(int argc, char **argv)
{
	sigset_t all, children;

	if (argc != 2 || strcmp(argv[1], "reap") != 0)
		return;
	must(getpid() == 1, "not the first process of its namespace");
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	setsid();
	leave_root();
	leave_privileges();
	prctl(PR_SET_NAME, "coracle-reaper", 0, 0, 0);
	/* Ready: the shim waits for the end of this pipe. */
	syscall(SYS_close_range, 0, ~0U, 0);
	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	for (;;) {
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		sigwaitinfo(&children, NULL);
	}
}
