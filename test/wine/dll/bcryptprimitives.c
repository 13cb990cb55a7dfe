/*
 * What a program of Go 1.26 needs to run under Wine 8, in a library that each
 * of them loads at its start: ProcessPrng, which Windows has had since version
 * 10, and two answers of Wine that Go does not expect.
 */
#include <string.h>
#include <winsock2.h>
#include <windows.h>

#define STATUS_NOT_IMPLEMENTED ((LONG)0xC0000002)
#define STATUS_INVALID_INFO_CLASS ((LONG)0xC0000003)
#define SIO_UDP_CONNRESET 0x9800000C
#define SIO_UDP_NETRESET 0x9800000F

BOOLEAN NTAPI SystemFunction036(PVOID, ULONG); /* RtlGenRandom */

static LONG(NTAPI *set_information)(HANDLE, PVOID, PVOID, ULONG, ULONG);
static int(WINAPI *ioctl)(SOCKET, DWORD, PVOID, DWORD, PVOID, DWORD, LPDWORD, LPWSAOVERLAPPED, PVOID);

/*
 * Go asks for a file to be removed as on Windows 10, and in the older way where
 * that is no information class. Wine says that it is not implemented instead,
 * and no temporary folder of a test could be removed.
 */
static LONG NTAPI set_information_here(HANDLE file, PVOID status, PVOID information, ULONG size, ULONG class) {
	LONG answer = set_information(file, status, information, size, class);
	return answer == STATUS_NOT_IMPLEMENTED ? STATUS_INVALID_INFO_CLASS : answer;
}

/* Go asks that errors of earlier UDP packets do not fail a read. Wine, which has none, refuses, and there is no UDP socket. */
static int WINAPI ioctl_here(SOCKET s, DWORD code, PVOID in, DWORD in_size, PVOID out, DWORD out_size, LPDWORD returned, LPWSAOVERLAPPED o, PVOID done) {
	if (code == SIO_UDP_CONNRESET || code == SIO_UDP_NETRESET) {
		*returned = 0;
		return 0;
	}
	return ioctl(s, code, in, in_size, out, out_size, returned, o, done);
}

/* A page behind a module, which its table of exports reaches with its 32 bits. */
static BYTE *page_behind(BYTE *module, DWORD size) {
	for (ULONGLONG offset = size; offset < 0x7fff0000; offset += 0x10000) {
		BYTE *page = VirtualAlloc((PVOID)(((ULONG_PTR)module + offset) & ~0xffffULL), 0x1000, MEM_RESERVE | MEM_COMMIT, PAGE_EXECUTE_READWRITE);
		if (page > module)
			return page;
		if (page != NULL)
			VirtualFree(page, 0, MEM_RELEASE);
	}
	return NULL;
}

/* replace has those who look the function up from now on get instead, and returns the function. */
static PVOID replace(const char *library, const char *function, PVOID instead) {
	BYTE *module = (BYTE *)LoadLibraryA(library), *page, jump[] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0}; /* mov rax, instead; jmp rax */
	IMAGE_OPTIONAL_HEADER *header = &((IMAGE_NT_HEADERS *)(module + ((IMAGE_DOS_HEADER *)module)->e_lfanew))->OptionalHeader;
	IMAGE_EXPORT_DIRECTORY *exports = (IMAGE_EXPORT_DIRECTORY *)(module + header->DataDirectory[IMAGE_DIRECTORY_ENTRY_EXPORT].VirtualAddress);
	DWORD *names = (DWORD *)(module + exports->AddressOfNames), *functions = (DWORD *)(module + exports->AddressOfFunctions), before;
	DWORD i = 0;
	PVOID original;
	while (i < exports->NumberOfNames && strcmp((char *)module + names[i], function) != 0)
		i++;
	page = page_behind(module, header->SizeOfImage);
	if (i == exports->NumberOfNames || page == NULL)
		ExitProcess(99);
	memcpy(jump + 2, &instead, sizeof instead);
	memcpy(page, jump, sizeof jump);
	functions += ((WORD *)(module + exports->AddressOfNameOrdinals))[i];
	original = module + *functions;
	VirtualProtect(functions, sizeof *functions, PAGE_READWRITE, &before);
	*functions = (DWORD)(page - module);
	VirtualProtect(functions, sizeof *functions, before, &before);
	return original;
}

/* The runtime calls it once before anything else of Go runs. */
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE bytes, SIZE_T size) {
	static LONG begun;
	if (InterlockedExchange(&begun, 1) == 0) {
		set_information = replace("ntdll.dll", "NtSetInformationFile", set_information_here);
		ioctl = replace("ws2_32.dll", "WSAIoctl", ioctl_here);
	}
	return SystemFunction036(bytes, (ULONG)size);
}
