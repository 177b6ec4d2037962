#include "checkpoint/torch_file.h"

#include "base/error.h"
#include "checkpoint/zip.h"
#include "tensor/compute.h"

#include <string.h>

enum {
    MAX_PICKLE_BYTES = 1 << 18, /* a thousand tensors take half of it */
    MAX_STACK = 1 << 16,
    MAX_MEMO = 1 << 16,
};
#define MAX_ELEMENTS ((int64_t)1 << 26) /* of all tensors of a file together */

/* Kinds beyond the public ones live on the stack only. */
enum { KIND_MARK = CS_TORCH_TENSOR + 1, KIND_GLOBAL, KIND_STORAGE };

typedef enum { CALL_STORAGE, CALL_REBUILD, CALL_DICT } call_kind;

struct cs_torch_value {
    int kind;
    union {
        int64_t integer;
        double real;
        char *string;
        GPtrArray *items; /* of a dictionary: key, value, key, value ... */
        cs_torch_tensor tensor;
        struct {
            call_kind call;
            cs_dtype dtype; /* of a storage */
        } global;
        struct {
            const uint8_t *data;
            cs_dtype dtype;
            int64_t n;
        } storage;
    };
};

struct cs_torch_file {
    GPtrArray *values; /* all that was made; owns them */
    const cs_torch_value *root;
};

typedef struct {
    cs_torch_file *file;
    const char *source;
    GHashTable *entries; /* of the archive */
    const char *prefix;  /* of the archive's names: "spk_dict/" */
    const uint8_t *at, *end;
    const uint8_t *begin;
    GPtrArray *stack;
    GPtrArray *memo;
    int64_t n_elements;
    GError *error; /* the first fault */
} machine;

/* ---- Values ---- */

static void value_free(void *data)
{
    cs_torch_value *v = data;
    if (v->kind == CS_TORCH_STRING)
        g_free(v->string);
    else if (v->kind == CS_TORCH_LIST || v->kind == CS_TORCH_DICT)
        g_ptr_array_unref(v->items);
    else if (v->kind == CS_TORCH_TENSOR)
        g_free(v->tensor.data);
    g_free(v);
}

void cs_torch_file_free(cs_torch_file *file)
{
    if (!file)
        return;
    g_ptr_array_unref(file->values);
    g_free(file);
}

const cs_torch_value *cs_torch_file_root(const cs_torch_file *file)
{
    return file->root;
}

cs_torch_kind cs_torch_value_kind(const cs_torch_value *value)
{
    /* A tuple of what only the machine handles may be left over in a container nobody asks for. */
    return value->kind <= CS_TORCH_TENSOR ? (cs_torch_kind)value->kind : CS_TORCH_NONE;
}

int64_t cs_torch_value_int(const cs_torch_value *value)
{
    g_assert(value->kind == CS_TORCH_INT || value->kind == CS_TORCH_BOOL);
    return value->integer;
}

double cs_torch_value_float(const cs_torch_value *value)
{
    g_assert(value->kind == CS_TORCH_FLOAT);
    return value->real;
}

const char *cs_torch_value_string(const cs_torch_value *value)
{
    g_assert(value->kind == CS_TORCH_STRING);
    return value->string;
}

const cs_torch_tensor *cs_torch_value_tensor(const cs_torch_value *value)
{
    g_assert(value->kind == CS_TORCH_TENSOR);
    return &value->tensor;
}

uint32_t cs_torch_value_length(const cs_torch_value *value)
{
    g_assert(value->kind == CS_TORCH_LIST || value->kind == CS_TORCH_DICT);
    return value->items->len / (value->kind == CS_TORCH_DICT ? 2 : 1);
}

const cs_torch_value *cs_torch_value_at(const cs_torch_value *value, uint32_t i)
{
    g_assert(i < cs_torch_value_length(value));
    return g_ptr_array_index(value->items, value->kind == CS_TORCH_DICT ? 2 * i + 1 : i);
}

const char *cs_torch_value_key(const cs_torch_value *value, uint32_t i)
{
    g_assert(value->kind == CS_TORCH_DICT && i < cs_torch_value_length(value));
    return cs_torch_value_string(g_ptr_array_index(value->items, 2 * i));
}

const cs_torch_value *cs_torch_value_get(const cs_torch_value *value, const char *key)
{
    for (uint32_t i = cs_torch_value_length(value); i-- > 0;)
        if (strcmp(cs_torch_value_key(value, i), key) == 0)
            return cs_torch_value_at(value, i);
    return NULL;
}

/* ---- The machine ---- */

static void fault(machine *m, cs_error_code code, const char *format, ...) G_GNUC_PRINTF(3, 4);
static void fault(machine *m, cs_error_code code, const char *format, ...)
{
    if (m->error)
        return;
    va_list args;
    va_start(args, format);
    g_autofree char *sentence = g_strdup_vprintf(format, args);
    va_end(args);
    cs_fail(&m->error, code, "%s: pickle, before byte %zu: %s", m->source,
            (size_t)(m->at - m->begin), sentence);
}

static cs_torch_value *make(machine *m, int kind)
{
    cs_torch_value *v = g_new0(cs_torch_value, 1);
    v->kind = kind;
    if (kind == CS_TORCH_LIST || kind == CS_TORCH_DICT)
        v->items = g_ptr_array_new();
    g_ptr_array_add(m->file->values, v);
    return v;
}

static void push(machine *m, cs_torch_value *v)
{
    if (m->stack->len >= MAX_STACK)
        fault(m, CS_ERROR_TOO_LARGE, "more than %d values on the stack", MAX_STACK);
    else
        g_ptr_array_add(m->stack, v);
}

/* After a fault a value that no use takes for what it needs. */
static cs_torch_value *pop(machine *m)
{
    if (m->stack->len == 0) {
        fault(m, CS_ERROR_INVALID, "takes a value from an empty stack");
        return make(m, KIND_MARK);
    }
    return g_ptr_array_remove_index(m->stack, m->stack->len - 1);
}

static cs_torch_value *top(machine *m, int kind, const char *expected)
{
    cs_torch_value *v = m->stack->len ? g_ptr_array_index(m->stack, m->stack->len - 1) : NULL;
    if (!v || v->kind != kind) {
        fault(m, CS_ERROR_INVALID, "expected %s on the stack", expected);
        return NULL;
    }
    return v;
}

/* Where the values behind the last mark begin; the mark stays. */
static guint find_mark(machine *m)
{
    for (guint i = m->stack->len; i-- > 0;)
        if (((cs_torch_value *)g_ptr_array_index(m->stack, i))->kind == KIND_MARK)
            return i + 1;
    fault(m, CS_ERROR_INVALID, "no mark on the stack");
    return m->stack->len;
}

static const uint8_t *take(machine *m, size_t n)
{
    static const uint8_t zeros[8];
    if ((size_t)(m->end - m->at) < n) {
        fault(m, CS_ERROR_INVALID, "ends in the middle of an instruction");
        return n <= sizeof zeros ? zeros : NULL;
    }
    m->at += n;
    return m->at - n;
}

static uint64_t take_number(machine *m, size_t n_bytes)
{
    const uint8_t *p = take(m, n_bytes);
    uint64_t x = 0;
    for (size_t i = 0; i < n_bytes; i++)
        x |= (uint64_t)p[i] << (8 * i);
    return x;
}

static void push_int(machine *m, int64_t x)
{
    cs_torch_value *v = make(m, CS_TORCH_INT);
    v->integer = x;
    push(m, v);
}

static void push_bool(machine *m, bool x)
{
    cs_torch_value *v = make(m, CS_TORCH_BOOL);
    v->integer = x;
    push(m, v);
}

/* Two's complement of n <= 8 bytes. */
static void push_long(machine *m)
{
    size_t n = (size_t)take_number(m, 1);
    if (n > 8) {
        fault(m, CS_ERROR_UNSUPPORTED, "an integer of %zu bytes, at most 8 are read", n);
        return;
    }
    uint64_t x = take_number(m, n);
    if (n > 0 && n < 8 && x >> (8 * n - 1))
        x |= UINT64_MAX << (8 * n);
    push_int(m, (int64_t)x);
}

static void push_float(machine *m)
{
    const uint8_t *p = take(m, 8);
    uint64_t bits = 0;
    for (int i = 0; i < 8; i++)
        bits = bits << 8 | p[i];
    cs_torch_value *v = make(m, CS_TORCH_FLOAT);
    memcpy(&v->real, &bits, sizeof bits);
    push(m, v);
}

static void push_text(machine *m, uint64_t n)
{
    const char *p = (const char *)take(m, n);
    if (m->error)
        return;
    if (!g_utf8_validate_len(p, n, NULL)) {
        fault(m, CS_ERROR_INVALID, "a string that is no UTF-8");
        return;
    }
    cs_torch_value *v = make(m, CS_TORCH_STRING);
    v->string = g_strndup(p, n);
    push(m, v);
}

static void remember(machine *m, uint64_t index)
{
    if (m->stack->len == 0 || index >= MAX_MEMO) {
        fault(m, CS_ERROR_INVALID, "memo entry %" G_GUINT64_FORMAT " of an empty stack, or over %d",
              index, MAX_MEMO);
        return;
    }
    if (index >= m->memo->len)
        g_ptr_array_set_size(m->memo, (gint)index + 1);
    m->memo->pdata[index] = g_ptr_array_index(m->stack, m->stack->len - 1);
}

static void recall(machine *m, uint64_t index)
{
    if (index >= m->memo->len || !m->memo->pdata[index])
        fault(m, CS_ERROR_INVALID, "memo entry %" G_GUINT64_FORMAT " was never written", index);
    else
        push(m, m->memo->pdata[index]);
}

static void make_tuple(machine *m, guint first, bool marked)
{
    if (m->error)
        return;
    cs_torch_value *v = make(m, CS_TORCH_LIST);
    for (guint i = first; i < m->stack->len; i++)
        g_ptr_array_add(v->items, g_ptr_array_index(m->stack, i));
    g_ptr_array_set_size(m->stack, (gint)(marked ? first - 1 : first));
    push(m, v);
}

static void make_short_tuple(machine *m, guint n)
{
    if (m->stack->len < n)
        fault(m, CS_ERROR_INVALID, "a tuple of %u from a stack of %u", n, m->stack->len);
    else
        make_tuple(m, m->stack->len - n, false);
}

/* Moves the stack's values from `first` on into the container below them. */
static void fill(machine *m, guint first, bool marked, int kind)
{
    guint n = m->stack->len;
    if (m->error)
        return;
    g_autofree gpointer *items = g_memdup2(m->stack->pdata + first, (n - first) * sizeof *items);
    g_ptr_array_set_size(m->stack, (gint)(marked ? first - 1 : first));
    cs_torch_value *container = top(m, kind, kind == CS_TORCH_DICT ? "a dictionary" : "a list");
    if (!container)
        return;
    if (kind == CS_TORCH_DICT && (n - first) % 2 != 0) {
        fault(m, CS_ERROR_INVALID, "a key without a value");
        return;
    }
    for (guint i = 0; i < n - first; i++) {
        const cs_torch_value *v = items[i];
        if (v->kind > CS_TORCH_TENSOR)
            fault(m, CS_ERROR_INVALID, "a container holds what is no value");
        else if (kind == CS_TORCH_DICT && i % 2 == 0 && v->kind != CS_TORCH_STRING)
            fault(m, CS_ERROR_UNSUPPORTED, "a dictionary's key that is no string");
    }
    for (guint i = 0; i < n - first && !m->error; i++)
        g_ptr_array_add(container->items, items[i]);
}

static void fill_one(machine *m, guint n, int kind)
{
    if (m->stack->len < n)
        fault(m, CS_ERROR_INVALID, "fills a container from a stack of %u", m->stack->len);
    else
        fill(m, m->stack->len - n, false, kind);
}

/* ---- Names, storages, tensors ---- */

static void push_global(machine *m, const char *module, const char *name)
{
    static const struct {
        const char *module, *name;
        call_kind call;
        cs_dtype dtype;
    } known[] = {
        {"torch", "FloatStorage", CALL_STORAGE, CS_DTYPE_F32},
        {"torch", "BFloat16Storage", CALL_STORAGE, CS_DTYPE_BF16},
        {"torch", "HalfStorage", CALL_STORAGE, CS_DTYPE_F16},
        {"torch._utils", "_rebuild_tensor_v2", CALL_REBUILD, 0},
        {"collections", "OrderedDict", CALL_DICT, 0},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(known); i++)
        if (strcmp(module, known[i].module) == 0 && strcmp(name, known[i].name) == 0) {
            cs_torch_value *v = make(m, KIND_GLOBAL);
            v->global.call = known[i].call;
            v->global.dtype = known[i].dtype;
            push(m, v);
            return;
        }
    g_autofree char *shown_module = g_strescape(module, NULL), *shown = g_strescape(name, NULL);
    fault(m, CS_ERROR_UNSUPPORTED,
          "asks for %.60s.%.60s; only float tensors and plain containers are read", shown_module,
          shown);
}

/* The text up to the next line feed. */
static char *take_line(machine *m)
{
    const uint8_t *feed = memchr(m->at, '\n', (size_t)(m->end - m->at));
    if (!feed) {
        fault(m, CS_ERROR_INVALID, "ends in the middle of a name");
        return g_strdup("");
    }
    char *line = g_strndup((const char *)m->at, (size_t)(feed - m->at));
    m->at = feed + 1;
    return line;
}

static void read_global(machine *m)
{
    g_autofree char *module = take_line(m), *name = take_line(m);
    if (!m->error)
        push_global(m, module, name);
}

static void read_stack_global(machine *m)
{
    const cs_torch_value *name = pop(m), *module = pop(m);
    if (name->kind != CS_TORCH_STRING || module->kind != CS_TORCH_STRING)
        fault(m, CS_ERROR_INVALID, "a name that is no string");
    else
        push_global(m, module->string, name->string);
}

static const cs_torch_value *item(const cs_torch_value *list, uint32_t i, int kind)
{
    if (list->kind != CS_TORCH_LIST || i >= list->items->len)
        return NULL;
    const cs_torch_value *v = g_ptr_array_index(list->items, i);
    return v->kind == kind ? v : NULL;
}

/* ("storage", torch.FloatStorage, key, device, number of elements): entry data/<key>. */
static void read_storage(machine *m)
{
    const cs_torch_value *id = pop(m);
    const cs_torch_value *word = item(id, 0, CS_TORCH_STRING), *type = item(id, 1, KIND_GLOBAL),
                         *key = item(id, 2, CS_TORCH_STRING), *count = item(id, 4, CS_TORCH_INT);
    if (!word || strcmp(word->string, "storage") != 0 || !type ||
        type->global.call != CALL_STORAGE || !key || !count) {
        fault(m, CS_ERROR_INVALID, "a reference that is none to a tensor's storage");
        return;
    }
    g_autofree char *name = g_strconcat(m->prefix, "data/", key->string, NULL);
    const cs_zip_entry *entry = g_hash_table_lookup(m->entries, name);
    size_t element = cs_dtype_size_bytes(type->global.dtype);
    if (!entry || count->integer < 0 || (uint64_t)count->integer != entry->size_bytes / element ||
        entry->size_bytes % element != 0) {
        g_autofree char *shown = g_strescape(key->string, NULL);
        fault(m, CS_ERROR_INVALID,
              "storage %.40s of %" G_GINT64_FORMAT " elements of %zu bytes: the archive has %s%zu",
              shown, count->integer, element, entry ? "bytes: " : "none, ",
              entry ? entry->size_bytes : 0);
        return;
    }
    cs_torch_value *v = make(m, KIND_STORAGE);
    v->storage.data = entry->data;
    v->storage.dtype = type->global.dtype;
    v->storage.n = count->integer;
    push(m, v);
}

typedef struct {
    uint32_t n_dims;
    int64_t offset, n;
    int64_t shape[CS_TORCH_MAX_DIMS], stride[CS_TORCH_MAX_DIMS];
} layout;

/* Sizes and strides, all elements inside the storage; in 64 bits without wrapping, since sizes are
 * at most the storage's before they are multiplied. */
static bool read_layout(const cs_torch_value *args, int64_t storage_n, layout *l)
{
    const cs_torch_value *offset = item(args, 1, CS_TORCH_INT),
                         *shape = item(args, 2, CS_TORCH_LIST),
                         *stride = item(args, 3, CS_TORCH_LIST);
    if (!offset || !shape || !stride || shape->items->len != stride->items->len ||
        shape->items->len > CS_TORCH_MAX_DIMS || offset->integer < 0 || offset->integer > storage_n)
        return false;
    *l = (layout){.n_dims = shape->items->len, .offset = offset->integer, .n = 1};
    int64_t last = l->offset;
    for (uint32_t i = 0; i < l->n_dims; i++) {
        const cs_torch_value *size = item(shape, i, CS_TORCH_INT),
                             *step = item(stride, i, CS_TORCH_INT);
        if (!size || !step || size->integer < 1 || step->integer < 0 || size->integer > storage_n ||
            step->integer > storage_n)
            return false;
        l->shape[i] = size->integer;
        l->stride[i] = step->integer;
        int64_t reach;
        if (__builtin_mul_overflow(l->n, size->integer, &l->n) || l->n > storage_n ||
            __builtin_mul_overflow(size->integer - 1, step->integer, &reach) ||
            __builtin_add_overflow(last, reach, &last))
            return false;
    }
    return last < storage_n;
}

static void copy_elements(const cs_torch_value *storage, const layout *l, float *out)
{
    size_t element = cs_dtype_size_bytes(storage->storage.dtype);
    int64_t index[CS_TORCH_MAX_DIMS] = {0};
    for (int64_t i = 0; i < l->n; i++) {
        int64_t at = l->offset;
        for (uint32_t d = 0; d < l->n_dims; d++)
            at += index[d] * l->stride[d];
        uint32_t bits[1]; /* storages lie unaligned in the archive */
        memcpy(bits, storage->storage.data + (size_t)at * element, element);
        cs_convert_to_f32(1, out + i, bits, storage->storage.dtype);
        for (uint32_t d = l->n_dims; d-- > 0;) {
            if (++index[d] < l->shape[d])
                break;
            index[d] = 0;
        }
    }
}

/* _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks). */
static void rebuild_tensor(machine *m, const cs_torch_value *args)
{
    const cs_torch_value *storage = item(args, 0, KIND_STORAGE),
                         *hooks = item(args, 5, CS_TORCH_DICT);
    layout l;
    if (!storage || !hooks || hooks->items->len > 0 || args->items->len != 6 ||
        !read_layout(args, storage->storage.n, &l)) {
        fault(m, CS_ERROR_INVALID,
              "a tensor whose sizes and strides do not lie in its storage, or with hooks");
        return;
    }
    m->n_elements += l.n;
    cs_torch_value *v = make(m, CS_TORCH_TENSOR);
    v->tensor.n_dims = l.n_dims;
    memcpy(v->tensor.shape, l.shape, sizeof l.shape);
    v->tensor.data = m->n_elements > MAX_ELEMENTS ? NULL : g_try_new(float, l.n);
    if (!v->tensor.data) {
        fault(m, CS_ERROR_TOO_LARGE, "tensors of more than %" G_GINT64_FORMAT " elements",
              MAX_ELEMENTS);
        return;
    }
    copy_elements(storage, &l, v->tensor.data);
    push(m, v);
}

static void call(machine *m)
{
    const cs_torch_value *args = pop(m), *function = pop(m);
    if (function->kind == KIND_GLOBAL && function->global.call == CALL_REBUILD &&
        args->kind == CS_TORCH_LIST)
        rebuild_tensor(m, args);
    else if (function->kind == KIND_GLOBAL && function->global.call == CALL_DICT &&
             args->kind == CS_TORCH_LIST && args->items->len == 0)
        push(m, make(m, CS_TORCH_DICT));
    else
        fault(m, CS_ERROR_UNSUPPORTED, "calls what is no function, or with other arguments");
}

/* ---- Opcodes ---- */

static void step(machine *m, uint8_t opcode)
{
    switch (opcode) {
    case 0x80: { /* PROTO */
        uint64_t version = take_number(m, 1);
        if (version < 2 || version > 5)
            fault(m, CS_ERROR_UNSUPPORTED, "protocol %d, 2 to 5 are read", (int)version);
        break;
    }
    case 0x95: /* FRAME: its length; all of the pickle is in memory */
        take_number(m, 8);
        break;
    case '(': /* MARK */
        push(m, make(m, KIND_MARK));
        break;
    case 'N': /* NONE */
        push(m, make(m, CS_TORCH_NONE));
        break;
    case 0x88: /* NEWTRUE */
        push_bool(m, true);
        break;
    case 0x89: /* NEWFALSE */
        push_bool(m, false);
        break;
    case 'K': /* BININT1 */
        push_int(m, (int64_t)take_number(m, 1));
        break;
    case 'M': /* BININT2 */
        push_int(m, (int64_t)take_number(m, 2));
        break;
    case 'J': /* BININT */
        push_int(m, (int32_t)take_number(m, 4));
        break;
    case 0x8a: /* LONG1 */
        push_long(m);
        break;
    case 'G': /* BINFLOAT */
        push_float(m);
        break;
    case 'X': /* BINUNICODE */
        push_text(m, take_number(m, 4));
        break;
    case 0x8c: /* SHORT_BINUNICODE */
        push_text(m, take_number(m, 1));
        break;
    case '}': /* EMPTY_DICT */
        push(m, make(m, CS_TORCH_DICT));
        break;
    case ']': /* EMPTY_LIST */
    case ')': /* EMPTY_TUPLE */
        push(m, make(m, CS_TORCH_LIST));
        break;
    case 't': /* TUPLE */
        make_tuple(m, find_mark(m), true);
        break;
    case 0x85: /* TUPLE1 */
    case 0x86: /* TUPLE2 */
    case 0x87: /* TUPLE3 */
        make_short_tuple(m, opcode - 0x84u);
        break;
    case 's': /* SETITEM */
        fill_one(m, 2, CS_TORCH_DICT);
        break;
    case 'u': /* SETITEMS */
        fill(m, find_mark(m), true, CS_TORCH_DICT);
        break;
    case 'a': /* APPEND */
        fill_one(m, 1, CS_TORCH_LIST);
        break;
    case 'e': /* APPENDS */
        fill(m, find_mark(m), true, CS_TORCH_LIST);
        break;
    case 'q': /* BINPUT */
        remember(m, take_number(m, 1));
        break;
    case 'r': /* LONG_BINPUT */
        remember(m, take_number(m, 4));
        break;
    case 0x94: /* MEMOIZE */
        remember(m, m->memo->len);
        break;
    case 'h': /* BINGET */
        recall(m, take_number(m, 1));
        break;
    case 'j': /* LONG_BINGET */
        recall(m, take_number(m, 4));
        break;
    case 'c': /* GLOBAL */
        read_global(m);
        break;
    case 0x93: /* STACK_GLOBAL */
        read_stack_global(m);
        break;
    case 'Q': /* BINPERSID */
        read_storage(m);
        break;
    case 'R': /* REDUCE */
        call(m);
        break;
    default:
        fault(m, CS_ERROR_UNSUPPORTED,
              "opcode 0x%02x is refused; only float tensors and plain containers are read", opcode);
    }
}

static void run(machine *m)
{
    enum { STOP = '.' };
    while (!m->error) {
        uint8_t opcode = *take(m, 1);
        if (opcode == STOP && !m->error)
            break;
        step(m, opcode);
    }
    const cs_torch_value *root = pop(m);
    if (root->kind > CS_TORCH_TENSOR || m->stack->len > 0)
        fault(m, CS_ERROR_INVALID, "ends with something else than one value");
    m->file->root = root;
}

/* The pickle is <name>/data.pkl for some name. */
static const cs_zip_entry *find_pickle(GHashTable *entries, char **prefix)
{
    GHashTableIter iter;
    gpointer name, entry;
    g_hash_table_iter_init(&iter, entries);
    while (g_hash_table_iter_next(&iter, &name, &entry)) {
        const char *slash = strchr(name, '/');
        if (slash && strcmp(slash, "/data.pkl") == 0) {
            *prefix = g_strndup(name, (size_t)(slash + 1 - (const char *)name));
            return entry;
        }
    }
    return NULL;
}

static bool check_byte_order(GHashTable *entries, const char *prefix, const char *source,
                             GError **error)
{
    g_autofree char *name = g_strconcat(prefix, "byteorder", NULL);
    const cs_zip_entry *order = g_hash_table_lookup(entries, name);
    if (order && (order->size_bytes != 6 || memcmp(order->data, "little", 6) != 0))
        return cs_fail(error, CS_ERROR_UNSUPPORTED, "%s: its byte order is not \"little\"", source);
    return true;
}

cs_torch_file *cs_torch_file_read(const uint8_t *data, size_t size_bytes, const char *source,
                                  GError **error)
{
    g_autoptr(GHashTable) entries = cs_zip_table_new();
    g_autofree char *prefix = NULL;
    if (!cs_zip_read(data, size_bytes, source, entries, error))
        return NULL;
    const cs_zip_entry *pickle = find_pickle(entries, &prefix);
    if (!pickle || pickle->size_bytes > MAX_PICKLE_BYTES) {
        cs_fail(error, CS_ERROR_INVALID, "%s: no entry <name>/data.pkl of at most %d bytes", source,
                MAX_PICKLE_BYTES);
        return NULL;
    }
    if (!check_byte_order(entries, prefix, source, error))
        return NULL;
    g_autoptr(cs_torch_file) file = g_new0(cs_torch_file, 1);
    file->values = g_ptr_array_new_with_free_func(value_free);
    g_autoptr(GPtrArray) stack = g_ptr_array_new(), memo = g_ptr_array_new();
    machine m = {.file = file,
                 .source = source,
                 .entries = entries,
                 .prefix = prefix,
                 .begin = pickle->data,
                 .at = pickle->data,
                 .end = pickle->data + pickle->size_bytes,
                 .stack = stack,
                 .memo = memo};
    run(&m);
    if (m.error) {
        g_propagate_error(error, m.error);
        return NULL;
    }
    return g_steal_pointer(&file);
}
