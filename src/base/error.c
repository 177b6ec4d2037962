#include "base/error.h"

#include <errno.h>

G_DEFINE_QUARK(cs - error - quark, cs_error)

static const struct {
    int http_status;
    const char *api_type;
} code_table[] = {
    [CS_ERROR_INVALID] = {400, "invalid_request_error"},
    [CS_ERROR_UNAUTHORIZED] = {401, "authentication_error"},
    [CS_ERROR_FORBIDDEN] = {403, "permission_error"},
    [CS_ERROR_NOT_FOUND] = {404, "not_found_error"},
    [CS_ERROR_CONFLICT] = {409, "conflict_error"},
    [CS_ERROR_TOO_LARGE] = {413, "invalid_request_error"},
    [CS_ERROR_UNSUPPORTED] = {400, "invalid_request_error"},
    [CS_ERROR_OVER_CONTEXT] = {400, "invalid_request_error"},
    [CS_ERROR_FAILED] = {500, "server_error"},
    [CS_ERROR_BUSY] = {503, "overloaded_error"},
    [CS_ERROR_TIMEOUT] = {504, "timeout_error"},
    [CS_ERROR_CANCELLED] = {499, "cancelled_error"},
    [CS_ERROR_SESSION_LOST] = {500, "server_error"},
    [CS_ERROR_EXECUTOR_LOST] = {503, "server_error"},
    [CS_ERROR_NODE_LOST] = {503, "server_error"},
};

static bool is_ours(const GError *error)
{
    return error->domain == CS_ERROR && error->code >= 0 &&
           error->code < (int)G_N_ELEMENTS(code_table);
}

int cs_error_http_status(const GError *error)
{
    return is_ours(error) ? code_table[error->code].http_status : 500;
}

const char *cs_error_api_type(const GError *error)
{
    return is_ours(error) ? code_table[error->code].api_type : "server_error";
}

bool cs_fail(GError **error, cs_error_code code, const char *format, ...)
{
    if (error) {
        va_list args;
        va_start(args, format);
        g_propagate_error(error, g_error_new_valist(CS_ERROR, (int)code, format, args));
        va_end(args);
    }
    return false;
}

bool cs_fail_errno(GError **error, int err, const char *format, ...)
{
    if (error) {
        va_list args;
        va_start(args, format);
        g_autofree char *what = g_strdup_vprintf(format, args);
        va_end(args);
        cs_error_code code = err == ENOENT ? CS_ERROR_NOT_FOUND : CS_ERROR_FAILED;
        g_set_error(error, CS_ERROR, (int)code, "%s: %s", what, g_strerror(err));
    }
    return false;
}
