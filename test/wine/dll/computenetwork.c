/*
 * A stand-in for computenetwork.dll, the Host Compute Network service of
 * Windows, which Wine does not have. It keeps networks, endpoints and namespaces
 * as long as its process lives, gives HCN's codes for what is not there, is in
 * use or is attached already, and writes down every call. Names and parameters
 * are those of computenetwork.h, as far as hcsshim's calls for these three kinds
 * of objects go; what is called Stub is for the tests
 * (pkg/dataplane/attach/hcnstub_windows_test.go).
 *
 * It knows of JSON what it needs: the texts come from hcsshim, without spaces
 * and each with its own ID first.
 */
#include <objbase.h>
#include <stdio.h>
#include <stdlib.h>
#include <wchar.h>

#define EXPORT __declspec(dllexport)

#define NETWORK_NOT_FOUND ((HRESULT)0x803B0001)
#define ENDPOINT_NOT_FOUND ((HRESULT)0x803B0002)
#define NETWORK_ALREADY_EXISTS ((HRESULT)0x803B0010)
#define ENDPOINT_ALREADY_ATTACHED ((HRESULT)0x803B0014)
#define ENTITY_HAS_REFERENCES ((HRESULT)0x803B002C)
#define NOT_FOUND HRESULT_FROM_WIN32(ERROR_NOT_FOUND)

enum { GUID_TEXT = 36, TEXT_SIZE = 1 << 16 };

enum kind { NETWORK, ENDPOINT, NAMESPACE, KINDS };

/* What HCN says of an object of the kind that is not there. */
static const HRESULT missing[KINDS] = {NETWORK_NOT_FOUND, ENDPOINT_NOT_FOUND, NOT_FOUND};

struct object {
	struct object *next;
	enum kind kind;
	GUID id;
	GUID network;   /* of an endpoint */
	GUID holder;    /* the namespace that an endpoint is in */
	unsigned number;
	wchar_t *settings; /* as they were given */
};

/* What the caller holds is the id, so that an object that is deleted meanwhile is no pointer to nothing. */
struct handle {
	enum kind kind;
	GUID id;
};

static SRWLOCK lock = SRWLOCK_INIT; /* guards all below */
static struct object *objects;
static unsigned last_number, open_handles;
static wchar_t calls[16 * TEXT_SIZE];
static wchar_t reply[TEXT_SIZE]; /* an answer being written: the threads of Go have little stack */
static struct {
	wchar_t call[64], record[1024];
	HRESULT answer;
} ordered;

static const GUID none;

static BOOL same(const GUID *a, const GUID *b) { return memcmp(a, b, sizeof *a) == 0; }

/* HCN writes ids in upper case. */
static const wchar_t *text_of(const GUID *id, wchar_t text[GUID_TEXT + 1]) {
	_snwprintf(text, GUID_TEXT + 1, L"%08lX-%04X-%04X-%02X%02X-%02X%02X%02X%02X%02X%02X", id->Data1, id->Data2, id->Data3, id->Data4[0], id->Data4[1],
		id->Data4[2], id->Data4[3], id->Data4[4], id->Data4[5], id->Data4[6], id->Data4[7]);
	return text;
}

/* The id behind the first place of key; none if there is no such place. */
static GUID id_behind(const wchar_t *text, const wchar_t *key) {
	wchar_t braced[GUID_TEXT + 3] = L"{";
	const wchar_t *at = wcsstr(text, key);
	GUID id = none;
	if (at == NULL || wcslen(at += wcslen(key)) < GUID_TEXT)
		return none;
	wcsncat(braced, at, GUID_TEXT);
	wcscat(braced, L"}");
	return CLSIDFromString(braced, &id) == S_OK ? id : none;
}

/* A copy that the caller frees with CoTaskMemFree. */
static wchar_t *given_away(const wchar_t *text) {
	size_t size = (wcslen(text) + 1) * sizeof *text;
	wchar_t *copy = CoTaskMemAlloc(size);
	return memcpy(copy, text, size);
}

static struct object *find(enum kind kind, const GUID *id) {
	struct object *o = objects;
	while (o != NULL && (o->kind != kind || !same(&o->id, id)))
		o = o->next;
	return o;
}

/* begin is the start of every call: it writes the call down and takes the answer that a test has ordered. */
static HRESULT begin(const wchar_t *call, const wchar_t *with, wchar_t **record) {
	HRESULT answer = S_OK;
	AcquireSRWLockExclusive(&lock);
	if (wcslen(calls) + wcslen(call) + wcslen(with) + 3 > sizeof calls / sizeof *calls)
		abort();
	wcscat(wcscat(wcscat(wcscat(calls, call), L" "), with), L"\n");
	if (record != NULL)
		*record = NULL;
	if (wcscmp(call, ordered.call) == 0) {
		answer = ordered.answer;
		ordered.call[0] = 0;
		if (record != NULL && ordered.record[0] != 0)
			*record = given_away(ordered.record);
	}
	return answer;
}

static HRESULT end(HRESULT answer, wchar_t **record) {
	ReleaseSRWLockExclusive(&lock);
	if (FAILED(answer) && record != NULL && *record == NULL) {
		wchar_t why[128];
		_snwprintf(why, 128, L"{\"Success\":false,\"Error\":\"refused\",\"ErrorCode\":%lu}", (unsigned long)answer);
		*record = given_away(why);
	}
	return answer;
}

static void *handle_of(const struct object *o) {
	struct handle *h = malloc(sizeof *h);
	h->kind = o->kind;
	h->id = o->id;
	open_handles++;
	return h;
}

/* What there is, or the one that the query's filter asks for. */
static HRESULT enumerate(enum kind kind, const wchar_t *call, const wchar_t *query, wchar_t **list, wchar_t **record) {
	HRESULT answer = begin(call, query, record);
	GUID only = id_behind(query, L"\\\"ID\\\":\\\"");
	wchar_t id[GUID_TEXT + 1];
	if (FAILED(answer))
		return end(answer, record);
	wcscpy(reply, L"[");
	for (struct object *o = objects; o != NULL; o = o->next) {
		if (o->kind != kind || (!same(&only, &none) && !same(&only, &o->id)))
			continue;
		wcscat(wcscat(wcscat(wcscat(reply, reply[1] ? L"," : L""), L"\""), text_of(&o->id, id)), L"\"");
	}
	*list = given_away(wcscat(reply, L"]"));
	return end(answer, record);
}

static HRESULT create(enum kind kind, const wchar_t *call, struct handle *network, const wchar_t *settings, void **handle, wchar_t **record) {
	HRESULT answer = begin(call, settings, record);
	struct object *o;
	GUID id = id_behind(settings, L"{\"ID\":\"");
	if (FAILED(answer))
		return end(answer, record);
	if (same(&id, &none) && FAILED(CoCreateGuid(&id)))
		abort();
	if (find(kind, &id) != NULL)
		return end(NETWORK_ALREADY_EXISTS, record);
	if (network != NULL && find(NETWORK, &network->id) == NULL)
		return end(NETWORK_NOT_FOUND, record);
	o = calloc(1, sizeof *o);
	o->kind = kind;
	o->id = id;
	o->network = network != NULL ? network->id : none;
	o->number = ++last_number;
	o->settings = _wcsdup(settings);
	o->next = objects;
	objects = o;
	*handle = handle_of(o);
	return end(answer, record);
}

static HRESULT open_object(enum kind kind, const wchar_t *call, const GUID *id, void **handle, wchar_t **record) {
	wchar_t id_text[GUID_TEXT + 1];
	HRESULT answer = begin(call, text_of(id, id_text), record);
	struct object *o = find(kind, id);
	if (FAILED(answer))
		return end(answer, record);
	if (o == NULL)
		return end(missing[kind], record);
	*handle = handle_of(o);
	return end(answer, record);
}

/* What HCN adds to the settings of an object. Of a key that is there twice, the reader takes the second. */
static void add_own(const struct object *o) {
	wchar_t id[GUID_TEXT + 1], more[128];
	wcscat(wcscat(wcscat(reply, L",\"ID\":\""), text_of(&o->id, id)), L"\"");
	if (o->kind == ENDPOINT && wcsstr(o->settings, L"\"MacAddress\"") == NULL) {
		_snwprintf(more, 128, L",\"MacAddress\":\"00-15-5D-00-00-%02X\"", o->number & 0xff);
		wcscat(reply, more);
	}
	if (o->kind == ENDPOINT && !same(&o->holder, &none))
		wcscat(wcscat(wcscat(reply, L",\"HostComputeNamespace\":\""), text_of(&o->holder, id)), L"\"");
	if (o->kind != NAMESPACE)
		return;
	_snwprintf(more, 128, L",\"NamespaceId\":%u,\"Resources\":[", o->number);
	wcscat(reply, more);
	more[0] = 0;
	for (struct object *e = objects; e != NULL; e = e->next) {
		if (e->kind != ENDPOINT || !same(&e->holder, &o->id))
			continue;
		wcscat(wcscat(wcscat(wcscat(reply, more), L"{\"Type\":\"Endpoint\",\"Data\":{\"Id\":\""), text_of(&e->id, id)), L"\"}}");
		wcscpy(more, L",");
	}
	wcscat(reply, L"]");
}

static HRESULT query_object(const wchar_t *call, struct handle *h, const wchar_t *query, wchar_t **properties, wchar_t **record) {
	HRESULT answer = begin(call, query, record);
	struct object *o = find(h->kind, &h->id);
	if (FAILED(answer))
		return end(answer, record);
	if (o == NULL)
		return end(missing[h->kind], record);
	wcscpy(reply, o->settings);
	reply[wcslen(reply) - 1] = 0; /* the closing brace */
	add_own(o);
	*properties = given_away(wcscat(reply, L"}"));
	return end(answer, record);
}

static HRESULT close_handle(const wchar_t *call, struct handle *h) {
	wchar_t id_text[GUID_TEXT + 1];
	HRESULT answer = begin(call, text_of(&h->id, id_text), NULL);
	if (FAILED(answer))
		return end(answer, NULL);
	open_handles--;
	free(h);
	return end(answer, NULL);
}

static HRESULT delete_object(enum kind kind, const wchar_t *call, const GUID *id, wchar_t **record) {
	wchar_t id_text[GUID_TEXT + 1];
	HRESULT answer = begin(call, text_of(id, id_text), record);
	struct object *o = find(kind, id), **at = &objects;
	if (FAILED(answer))
		return end(answer, record);
	if (o == NULL)
		return end(missing[kind], record);
	for (struct object *e = objects; kind == NETWORK && e != NULL; e = e->next)
		if (e->kind == ENDPOINT && same(&e->network, id))
			return end(ENTITY_HAS_REFERENCES, record);
	while (*at != o)
		at = &(*at)->next;
	*at = o->next;
	free(o->settings);
	free(o);
	return end(answer, record);
}

EXPORT HRESULT WINAPI HcnModifyNamespace(struct handle *h, const wchar_t *settings, wchar_t **record) {
	HRESULT answer = begin(L"HcnModifyNamespace", settings, record);
	GUID id = id_behind(settings, L"\"EndpointId\":\"");
	struct object *endpoint = find(ENDPOINT, &id);
	if (FAILED(answer))
		return end(answer, record);
	if (find(NAMESPACE, &h->id) == NULL)
		return end(NOT_FOUND, record);
	if (endpoint == NULL)
		return end(ENDPOINT_NOT_FOUND, record);
	if (wcsstr(settings, L"\"RequestType\":\"Remove\"") != NULL)
		endpoint->holder = none;
	else if (find(NAMESPACE, &endpoint->holder) != NULL)
		return end(ENDPOINT_ALREADY_ATTACHED, record);
	else
		endpoint->holder = h->id;
	return end(answer, record);
}

#define FUNCTIONS(KIND, One, Many) \
	EXPORT HRESULT WINAPI HcnEnumerate##Many(const wchar_t *query, wchar_t **list, wchar_t **record) { \
		return enumerate(KIND, L"HcnEnumerate" L## #Many, query, list, record); \
	} \
	EXPORT HRESULT WINAPI HcnOpen##One(const GUID *id, void **handle, wchar_t **record) { \
		return open_object(KIND, L"HcnOpen" L## #One, id, handle, record); \
	} \
	EXPORT HRESULT WINAPI HcnQuery##One##Properties(struct handle *h, const wchar_t *query, wchar_t **properties, wchar_t **record) { \
		return query_object(L"HcnQuery" L## #One L"Properties", h, query, properties, record); \
	} \
	EXPORT HRESULT WINAPI HcnClose##One(struct handle *h) { return close_handle(L"HcnClose" L## #One, h); } \
	EXPORT HRESULT WINAPI HcnDelete##One(const GUID *id, wchar_t **record) { return delete_object(KIND, L"HcnDelete" L## #One, id, record); }

FUNCTIONS(NETWORK, Network, Networks)
FUNCTIONS(ENDPOINT, Endpoint, Endpoints)
FUNCTIONS(NAMESPACE, Namespace, Namespaces)

/* hcsshim passes no id, it is in the settings. */
EXPORT HRESULT WINAPI HcnCreateNetwork(const GUID *id, const wchar_t *settings, void **handle, wchar_t **record) {
	return create(NETWORK, L"HcnCreateNetwork", NULL, settings, handle, record);
}

EXPORT HRESULT WINAPI HcnCreateEndpoint(struct handle *network, const GUID *id, const wchar_t *settings, void **handle, wchar_t **record) {
	return create(ENDPOINT, L"HcnCreateEndpoint", network, settings, handle, record);
}

EXPORT HRESULT WINAPI HcnCreateNamespace(const GUID *id, const wchar_t *settings, void **handle, wchar_t **record) {
	return create(NAMESPACE, L"HcnCreateNamespace", NULL, settings, handle, record);
}

/* StubReset forgets all objects and calls. */
EXPORT void WINAPI StubReset(void) {
	AcquireSRWLockExclusive(&lock);
	while (objects != NULL) {
		struct object *o = objects;
		objects = o->next;
		free(o->settings);
		free(o);
	}
	last_number = open_handles = 0;
	calls[0] = ordered.call[0] = 0;
	ReleaseSRWLockExclusive(&lock);
}

/* StubCalls returns what was called, a line for each, until the next call. */
EXPORT const wchar_t *WINAPI StubCalls(void) { return calls; }

/* StubHandles returns how many handles are open. */
EXPORT unsigned WINAPI StubHandles(void) { return open_handles; }

/* StubOrder has the next call of that name answer so, without effect if that is a failure. */
EXPORT void WINAPI StubOrder(const wchar_t *call, HRESULT answer, const wchar_t *record) {
	AcquireSRWLockExclusive(&lock);
	wcsncpy(ordered.call, call, sizeof ordered.call / sizeof *call - 1);
	wcsncpy(ordered.record, record, sizeof ordered.record / sizeof *record - 1);
	ordered.answer = answer;
	ReleaseSRWLockExclusive(&lock);
}
