/*
 * A program that makes the system calls it is told to, and no other: no C library, so nothing happens in it
 * that a test did not ask for. tests/support/puppet.py pulls the strings.
 *
 * It reads commands of 64 bytes from a socket (descriptor 0, or the number in argv[1]) and answers each with
 * 8 bytes. The first answer, at start and after each exec, is the address of a megabyte of memory.
 */

struct command {
	unsigned long long operation, number, arguments[6];
};

enum { CALL, SPAWN, LOAD, STORE };

long raw(long number, const long *arguments);
long spawn(long flags, long stack, long control); /* the child goes on in serve(control) */

#ifdef __x86_64__
enum { READ = 0, WRITE = 1, MMAP = 9, EXIT_GROUP = 231 };
__asm__(".globl _start\n"
	"_start: mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call begin\n"
	".globl raw\n"
	"raw:	mov %rdi, %rax\n"
	"	mov %rsi, %rcx\n"
	"	mov (%rcx), %rdi\n"
	"	mov 8(%rcx), %rsi\n"
	"	mov 16(%rcx), %rdx\n"
	"	mov 24(%rcx), %r10\n"
	"	mov 32(%rcx), %r8\n"
	"	mov 40(%rcx), %r9\n"
	"	syscall\n"
	"	ret\n"
	".globl spawn\n"
	"spawn:	push %r12\n"
	"	mov %rdx, %r12\n"
	"	mov $56, %eax\n"
	"	xor %edx, %edx\n"
	"	xor %r10d, %r10d\n"
	"	xor %r8d, %r8d\n"
	"	syscall\n"
	"	test %rax, %rax\n"
	"	jz 1f\n"
	"	pop %r12\n"
	"	ret\n"
	"1:	and $-16, %rsp\n"
	"	mov %r12, %rdi\n"
	"	call serve\n");
#else
enum { READ = 3, WRITE = 4, MMAP = 192, EXIT_GROUP = 252 };
__asm__(".globl _start\n"
	"_start: mov %esp, %eax\n"
	"	and $-16, %esp\n"
	"	sub $12, %esp\n"
	"	push %eax\n"
	"	call begin\n"
	".globl raw\n"
	"raw:	push %ebx\n"
	"	push %esi\n"
	"	push %edi\n"
	"	push %ebp\n"
	"	mov 20(%esp), %eax\n"
	"	mov 24(%esp), %ebp\n"
	"	mov (%ebp), %ebx\n"
	"	mov 4(%ebp), %ecx\n"
	"	mov 8(%ebp), %edx\n"
	"	mov 12(%ebp), %esi\n"
	"	mov 16(%ebp), %edi\n"
	"	mov 20(%ebp), %ebp\n"
	"	int $0x80\n"
	"	pop %ebp\n"
	"	pop %edi\n"
	"	pop %esi\n"
	"	pop %ebx\n"
	"	ret\n"
	".globl spawn\n"
	"spawn:	push %ebx\n"
	"	push %esi\n"
	"	push %edi\n"
	"	push %ebp\n"
	"	mov $120, %eax\n"
	"	mov 20(%esp), %ebx\n"
	"	mov 24(%esp), %ecx\n"
	"	mov 28(%esp), %ebp\n"
	"	xor %edx, %edx\n"
	"	xor %esi, %esi\n"
	"	xor %edi, %edi\n"
	"	int $0x80\n"
	"	test %eax, %eax\n"
	"	jz 1f\n"
	"	pop %ebp\n"
	"	pop %edi\n"
	"	pop %esi\n"
	"	pop %ebx\n"
	"	ret\n"
	"1:	and $-16, %esp\n"
	"	sub $12, %esp\n"
	"	push %ebp\n"
	"	call serve\n");
#endif

static long transfer(long number, long control, void *data, long size)
{
	long arguments[6] = { control, (long)data, size, 0, 0, 0 };

	return raw(number, arguments);
}

static void answer(long control, long long value)
{
	transfer(WRITE, control, &value, sizeof(value));
}

void serve(long control)
{
	struct command command;

	while (transfer(READ, control, &command, sizeof(command)) == sizeof(command)) {
		long arguments[6];
		long long value = 0;

		for (int i = 0; i < 6; i++)
			arguments[i] = command.arguments[i];
		if (command.operation == CALL)
			value = raw(command.number, arguments);
		else if (command.operation == SPAWN)
			value = spawn(arguments[0], arguments[1], arguments[2]);
		else if (command.operation == LOAD)
			value = *(volatile unsigned int *)arguments[0];
		else if (command.operation == STORE)
			*(volatile unsigned int *)arguments[0] = arguments[1];
		answer(control, value);
	}
	transfer(EXIT_GROUP, 0, 0, 0);
}

void begin(long *stack)
{
	long memory[6] = { 0, 1 << 20, 3, 0x22, -1, 0 }; /* read and write, private, anonymous */
	long control = 0;

	if (stack[0] > 1)
		for (const char *digit = (const char *)stack[2]; *digit; digit++)
			control = control * 10 + *digit - '0';
	answer(control, (unsigned long)raw(MMAP, memory));
	serve(control);
}
