#include "text/chat_template.h"

#include "base/error.h"
#include "base/json.h"
#include "base/os.h"
#include "text/jinja.h"
#include "text/jinja_host.h"

#include "jinja_runtime_lua.h"

#include <lauxlib.h>
#include <string.h>

/* The longest published templates have 20 KB. */
#define MAX_TEMPLATE_BYTES (256u << 10)
#define MAX_FILE_BYTES (16u << 20)
/* Of messages: deeper values are refused. */
#define MAX_JSON_DEPTH 100
/* More garbage than this is collected at once after a render. */
#define KEEP_BYTES (8u << 20)

static const cs_sandbox_limits limits = {
    .memory_bytes = 256u << 20, /* a conversation of some tens of MB, several times over */
    .source_bytes = 16u << 20,  /* of translated templates; MAX_TEMPLATE_BYTES bounds the origin */
    .steps = 50u * 1000 * 1000,
    .time_us = 10 * G_USEC_PER_SEC,
};

/* Keys in the registry of the Lua state. */
#define RUNTIME "cornserve.jinja"
#define DEFAULT_TEMPLATE "default"
#define TOOL_TEMPLATE "tool_use"

struct cs_chat_template {
    GMutex lock; /* over all that follows */
    cs_sandbox *sandbox;
    jinja_host host;
    char *name;
    json_t *special_tokens; /* object, or NULL */
    bool has_tool_template;
};

typedef struct {
    cs_chat_template *template;
    const cs_chat_request *request;
    const char *code, *key; /* compile */
    char *out;              /* render */
    size_t size_bytes;
} run_args;

static int open_body(lua_State *L)
{
    const run_args *args = lua_touserdata(L, 1);
    cs_sandbox_load(L, (const char *)jinja_runtime_lua, sizeof jinja_runtime_lua,
                    "jinja_runtime.lua");
    jinja_host_push(L, &args->template->host);
    lua_call(L, 1, 1);
    lua_setfield(L, LUA_REGISTRYINDEX, RUNTIME);
    return 0;
}

static int compile_body(lua_State *L)
{
    const run_args *args = lua_touserdata(L, 1);
    cs_sandbox_load(L, args->code, strlen(args->code), args->template->name);
    lua_getfield(L, LUA_REGISTRYINDEX, RUNTIME);
    lua_call(L, 1, 1);
    lua_setfield(L, LUA_REGISTRYINDEX, args->key);
    return 0;
}

static bool compile(cs_chat_template *t, const char *text, size_t size_bytes, const char *key,
                    GError **error)
{
    if (size_bytes > MAX_TEMPLATE_BYTES)
        return cs_fail(error, CS_ERROR_TOO_LARGE, "%s: %zu bytes, at most %u are taken", t->name,
                       size_bytes, MAX_TEMPLATE_BYTES);
    g_autofree char *code = jinja_translate(text, size_bytes, t->name, error);
    if (!code)
        return false;
    run_args args = {.template = t, .code = code, .key = key};
    return cs_sandbox_run(t->sandbox, compile_body, &args, error);
}

static cs_chat_template *new_template(const char *name, GError **error)
{
    g_autoptr(cs_chat_template) t = g_new0(cs_chat_template, 1);
    g_mutex_init(&t->lock);
    t->name = g_strdup(name);
    t->host = (jinja_host){.template_name = t->name, .scratch = g_string_new(NULL)};
    t->sandbox = cs_sandbox_new(name, &limits, error);
    run_args args = {.template = t};
    if (!t->sandbox || !cs_sandbox_run(t->sandbox, open_body, &args, error))
        return NULL;
    return g_steal_pointer(&t);
}

cs_chat_template *cs_chat_template_parse(const char *text, size_t size_bytes, const char *name,
                                         GError **error)
{
    g_autoptr(cs_chat_template) t = new_template(name, error);
    if (!t || !compile(t, text, size_bytes, DEFAULT_TEMPLATE, error))
        return NULL;
    return g_steal_pointer(&t);
}

void cs_chat_template_free(cs_chat_template *t)
{
    if (!t)
        return;
    cs_sandbox_free(t->sandbox);
    g_string_free(t->host.scratch, TRUE);
    json_decref(t->special_tokens);
    g_free(t->name);
    g_mutex_clear(&t->lock);
    g_free(t);
}

/* [{"name": "default", "template": "..."}, ...]; names that no request asks for are left out. */
static bool compile_list(cs_chat_template *t, json_t *list, GError **error)
{
    json_t *entry;
    size_t i;
    bool has_default = false;
    json_array_foreach (list, i, entry) {
        const char *name = json_string_value(json_object_get(entry, "name"));
        json_t *text = json_object_get(entry, "template");
        if (!name || !json_is_string(text))
            return cs_fail(error, CS_ERROR_INVALID,
                           "%s: chat_template[%zu]: expected a name and a template", t->name, i);
        bool is_default = strcmp(name, DEFAULT_TEMPLATE) == 0;
        bool is_tool = strcmp(name, TOOL_TEMPLATE) == 0;
        if ((is_default || is_tool) &&
            !compile(t, json_string_value(text), json_string_length(text), name, error))
            return false;
        has_default = has_default || is_default;
        t->has_tool_template = t->has_tool_template || is_tool;
    }
    return has_default || cs_fail(error, CS_ERROR_INVALID,
                                  "%s: chat_template has none of the name \"default\"", t->name);
}

static bool compile_json(cs_chat_template *t, json_t *value, GError **error)
{
    if (json_is_string(value))
        return compile(t, json_string_value(value), json_string_length(value), DEFAULT_TEMPLATE,
                       error);
    if (json_is_array(value))
        return compile_list(t, value, error);
    return cs_fail(error, CS_ERROR_INVALID, "%s: chat_template: expected a string or an array",
                   t->name);
}

/* bos_token and the like are strings, or objects with the token's content. */
static json_t *read_special_tokens(json_t *config)
{
    json_t *tokens = json_object(), *value;
    const char *key;
    json_object_foreach (config, key, value) {
        if (json_is_object(value))
            value = json_object_get(value, "content");
        bool is_list = strcmp(key, "additional_special_tokens") == 0 && json_is_array(value);
        if (is_list || (g_str_has_suffix(key, "_token") && json_is_string(value)))
            json_object_set(tokens, key, value);
    }
    return tokens;
}

/* NULL without an error when the file is not there. */
static char *read_file(const char *dir, const char *name, size_t *size_bytes, GError **error)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    GError *failed = NULL;
    char *text = cs_file_read(path, MAX_FILE_BYTES, size_bytes, &failed);
    if (g_error_matches(failed, CS_ERROR, CS_ERROR_NOT_FOUND))
        g_error_free(failed);
    else if (failed)
        g_propagate_error(error, failed);
    return text;
}

static json_t *read_json(const char *dir, const char *name, GError **error)
{
    size_t size_bytes;
    g_autofree char *text = read_file(dir, name, &size_bytes, error);
    return text ? cs_json_load(text, size_bytes, name, error) : NULL;
}

static cs_chat_template *from_jinja_file(const char *dir, GError **error)
{
    size_t size_bytes;
    g_autofree char *text = read_file(dir, "chat_template.jinja", &size_bytes, error);
    return text ? cs_chat_template_parse(text, size_bytes, "chat_template.jinja", error) : NULL;
}

/* NULL without an error when the object has no chat_template. */
static cs_chat_template *from_json(json_t *object, const char *name, GError **error)
{
    json_t *value = json_object_get(object, "chat_template");
    if (!value || json_is_null(value))
        return NULL;
    g_autoptr(cs_chat_template) t = new_template(name, error);
    return t && compile_json(t, value, error) ? g_steal_pointer(&t) : NULL;
}

static cs_chat_template *load(const char *dir, json_t **config, GError **error)
{
    GError *failed = NULL;
    *config = read_json(dir, "tokenizer_config.json", &failed);
    cs_chat_template *t = failed ? NULL : from_jinja_file(dir, &failed);
    if (!t && !failed) {
        json_t *file = read_json(dir, "chat_template.json", &failed);
        if (file)
            t = from_json(file, "chat_template.json", &failed);
        json_decref(file);
    }
    if (!t && !failed)
        t = from_json(*config, "tokenizer_config.json", &failed);
    if (failed)
        g_propagate_error(error, failed);
    else if (!t)
        cs_fail(error, CS_ERROR_NOT_FOUND,
                "no chat template: expected chat_template.jinja, chat_template.json, or "
                "chat_template in tokenizer_config.json");
    return t;
}

cs_chat_template *cs_chat_template_load(const char *dir, GError **error)
{
    json_t *config;
    cs_chat_template *t = load(dir, &config, error);
    if (t)
        t->special_tokens = read_special_tokens(config);
    json_decref(config);
    return t;
}

static void push_json(lua_State *L, const run_args *args, json_t *value, int depth);

static void push_text(lua_State *L, const run_args *args, const char *text, size_t size_bytes)
{
    if (!args->request->guard) {
        lua_pushlstring(L, text, size_bytes);
        return;
    }
    GString *guarded = args->template->host.scratch;
    g_string_truncate(guarded, 0);
    cs_tokenizer_guard(args->request->guard, text, size_bytes, guarded);
    lua_pushlstring(L, guarded->str, guarded->len);
}

static void push_list(lua_State *L, const run_args *args, json_t *value, int depth)
{
    json_t *item;
    size_t i;
    lua_createtable(L, (int)MIN(json_array_size(value), 1u << 20), 2);
    json_array_foreach (value, i, item) {
        push_json(L, args, item, depth + 1);
        lua_rawseti(L, -2, (lua_Integer)i + 1);
    }
    lua_pushinteger(L, (lua_Integer)json_array_size(value));
    lua_setfield(L, -2, "n");
    lua_pushliteral(L, "list");
    lua_setfield(L, -2, "t");
}

static void push_dict(lua_State *L, const run_args *args, json_t *value, int depth)
{
    const char *key;
    json_t *item;
    lua_Integer n = 0;
    int size = (int)MIN(json_object_size(value), 1u << 20);
    lua_createtable(L, 0, 3);
    lua_createtable(L, size, 2); /* keys */
    lua_createtable(L, 0, size); /* map */
    json_object_foreach (value, key, item) {
        push_text(L, args, key, strlen(key));
        lua_pushvalue(L, -1);
        lua_rawseti(L, -4, ++n);
        push_json(L, args, item, depth + 1);
        lua_rawset(L, -3);
    }
    lua_setfield(L, -3, "m");
    lua_pushinteger(L, n);
    lua_setfield(L, -2, "n");
    lua_pushliteral(L, "list");
    lua_setfield(L, -2, "t");
    lua_setfield(L, -2, "k");
    lua_pushliteral(L, "dict");
    lua_setfield(L, -2, "t");
}

/* The representation of jinja_runtime.lua. The run time's table stands at index 2. */
static void push_json(lua_State *L, const run_args *args, json_t *value, int depth)
{
    if (depth > MAX_JSON_DEPTH)
        luaL_error(L, "messages are nested more than %d deep", MAX_JSON_DEPTH);
    luaL_checkstack(L, 8, "messages");
    cs_sandbox_charge(L, 2);
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        push_dict(L, args, value, depth);
        break;
    case JSON_ARRAY:
        push_list(L, args, value, depth);
        break;
    case JSON_STRING:
        push_text(L, args, json_string_value(value), json_string_length(value));
        break;
    case JSON_INTEGER:
        lua_pushinteger(L, json_integer_value(value));
        break;
    case JSON_REAL:
        lua_pushnumber(L, json_real_value(value));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        lua_pushboolean(L, json_is_true(value));
        break;
    default:
        lua_getfield(L, 2, "N");
    }
}

/* Sets a variable; without a value it is None, as transformers passes it. */
static void set_variable(lua_State *L, const run_args *args, const char *name, json_t *value)
{
    if (value)
        push_json(L, args, value, 0);
    else
        lua_getfield(L, 2, "N");
    lua_setfield(L, 3, name);
}

static void set_variables(lua_State *L, const run_args *args, json_t *object)
{
    const char *key;
    json_t *value;
    json_object_foreach (object, key, value)
        set_variable(L, args, key, value);
}

static int render_body(lua_State *L)
{
    run_args *args = lua_touserdata(L, 1);
    const cs_chat_request *request = args->request;
    bool with_tools = json_array_size(request->tools) > 0 && args->template->has_tool_template;
    lua_getfield(L, LUA_REGISTRYINDEX, RUNTIME); /* 2 */
    lua_createtable(L, 0, 16);                   /* 3: the variables */
    /* The file's own tokens are not a user's text. */
    const cs_chat_request plain = {.guard = NULL};
    const run_args unguarded = {.template = args->template, .request = &plain};
    set_variables(L, &unguarded, args->template->special_tokens);
    set_variable(L, args, "messages", request->messages);
    set_variable(L, args, "tools", request->tools);
    set_variable(L, args, "documents", request->documents);
    lua_pushboolean(L, request->add_generation_prompt);
    lua_setfield(L, 3, "add_generation_prompt");
    set_variables(L, args, request->extra);
    lua_getfield(L, 2, "top");
    lua_setmetatable(L, 3);
    lua_getfield(L, LUA_REGISTRYINDEX, with_tools ? TOOL_TEMPLATE : DEFAULT_TEMPLATE);
    lua_pushvalue(L, 3);
    lua_call(L, 1, 1);
    const char *text = luaL_checklstring(L, -1, &args->size_bytes);
    args->out = g_try_malloc(args->size_bytes + 1);
    if (!args->out)
        luaL_error(L, "not enough memory for a prompt of %I bytes", (LUAI_UACINT)args->size_bytes);
    memcpy(args->out, text, args->size_bytes + 1);
    lua_settop(L, 0);
    if (cs_sandbox_memory_bytes(args->template->sandbox) > KEEP_BYTES)
        lua_gc(L, LUA_GCCOLLECT);
    return 0;
}

char *cs_chat_template_render(cs_chat_template *t, const cs_chat_request *request,
                              size_t *size_bytes, GError **error)
{
    run_args args = {.template = t, .request = request};
    g_mutex_lock(&t->lock);
    t->host.now_s = request->now_s;
    bool ok = cs_sandbox_run(t->sandbox, render_body, &args, error);
    g_mutex_unlock(&t->lock);
    if (!ok) {
        g_free(args.out);
        /* A fault inside the run time knows no line of the template. */
        if (error && !g_str_has_prefix((*error)->message, t->name))
            g_prefix_error(error, "%s: ", t->name);
        return NULL;
    }
    *size_bytes = args.size_bytes;
    return args.out;
}
