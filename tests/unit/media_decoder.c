/* The sandboxed decoder on hostile bytes, and its pool when processes die, hang or are attacked.
 * CS_GOLDEN is the folder of golden files, CS_MEDIA_DECODER the decoder program. */
#include "base/error.h"
#include "base/os.h"
#include "media/decoder/pool_internal.h"
#include "media/preprocess/config.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define UNDER_SANITIZER true
#else
#define UNDER_SANITIZER false
#endif

static const char *program[2];
static cs_vision_config vision;

static cs_media_pool *new_pool(uint32_t deadline_ms, const cs_media_limits *limits)
{
    g_autoptr(GError) error = NULL;
    cs_media_pool_options options = CS_MEDIA_POOL_OPTIONS_DEFAULT;
    options.program = program;
    options.deadline_ms = deadline_ms;
    if (limits)
        options.limits = *limits;
    cs_media_pool *pool = cs_media_pool_new(&options, &error);
    g_assert_no_error(error);
    return pool;
}

static GBytes *load(const char *name)
{
    g_autoptr(GError) error = NULL;
    size_t size;
    g_autofree char *path = g_build_filename(g_getenv("CS_GOLDEN"), "media_formats", name, NULL);
    char *data = cs_file_read(path, 64 << 20, &size, &error);
    g_assert_no_error(error);
    return g_bytes_new_take(data, size);
}

/* Any of the three kinds, to a hash of everything decoded. */
typedef enum { IMAGE, AUDIO, VIDEO } kind;

static kind kind_of(const char *name)
{
    static const char *const sounds[] = {".wav", ".flac", ".ogg", ".mp3", ".m4a"};
    for (size_t i = 0; i < G_N_ELEMENTS(sounds); i++)
        if (g_str_has_suffix(name, sounds[i]))
            return AUDIO;
    return g_str_has_suffix(name, ".mp4") || g_str_has_suffix(name, ".webm") ? VIDEO : IMAGE;
}

static bool decode(cs_media_pool *pool, kind k, const void *data, size_t size, uint64_t *hash,
                   GError **error)
{
    g_auto(cs_image) image = {0};
    g_auto(cs_audio) audio = {0};
    g_auto(cs_video) video = {0};
    *hash = CS_HASH_SEED;
    if (k == IMAGE) {
        if (!cs_media_decode_image(pool, data, size, &image, error))
            return false;
        *hash = cs_hash(*hash, image.rgb, (size_t)image.width * image.height * 3);
    } else if (k == AUDIO) {
        if (!cs_media_decode_audio(pool, data, size, 16000, &audio, error))
            return false;
        *hash = cs_hash(*hash, audio.samples, audio.n_samples * sizeof(float));
    } else {
        if (!cs_media_decode_video(pool, data, size, &vision.video, 16000, &video, error))
            return false;
        *hash = cs_hash(*hash, video.rgb, (size_t)video.width * video.height * video.n_frames * 3);
        *hash = cs_hash(*hash, video.audio.samples, video.audio.n_samples * sizeof(float));
    }
    return true;
}

static void assert_works(cs_media_pool *pool, const char *name)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) bytes = load(name);
    uint64_t hash;
    decode(pool, kind_of(name), g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes), &hash,
           &error);
    g_assert_no_error(error);
}

static void assert_refused(cs_media_pool *pool, kind k, const void *data, size_t size, int code,
                           const char *sentence)
{
    g_autoptr(GError) error = NULL;
    uint64_t hash;
    g_assert_false(decode(pool, k, data, size, &hash, &error));
    g_assert_error(error, CS_ERROR, code);
    if (sentence)
        g_assert_cmpstr(error->message, ==, sentence);
}

/* ---- the sandbox ---- */

static void assert_probe(cs_media_pool *pool, cs_decoder_kind which, cs_decoder_probe probe,
                         const char *sentence)
{
    g_autoptr(GError) error = NULL;
    g_assert_false(cs_media_pool_probe(pool, which, probe, &error));
    g_assert_nonnull(strstr(error->message, sentence));
}

static void test_sandbox(void)
{
    g_autoptr(cs_media_pool) pool = new_pool(20000, NULL);
    const char *killed = UNDER_SANITIZER ? "the media decoder process" : "signal 31";
    for (int which = 0; which < CS_DECODER_KINDS; which++) {
        assert_probe(pool, which, CS_DECODER_PROBE_OPEN, "open was refused: Permission denied");
        g_assert_cmpuint(cs_media_pool_restarts(pool), ==, (unsigned)which * 5);
        assert_probe(pool, which, CS_DECODER_PROBE_SOCKET, killed);
        assert_probe(pool, which, CS_DECODER_PROBE_EXEC, killed);
        assert_probe(pool, which, CS_DECODER_PROBE_FORK, killed);
        assert_probe(pool, which, CS_DECODER_PROBE_KILL_PARENT, killed);
        assert_probe(pool, which, CS_DECODER_PROBE_EXECUTABLE_MEMORY, killed);
        if (!UNDER_SANITIZER)
            assert_probe(pool, which, CS_DECODER_PROBE_MEMORY,
                         "memory was refused: Cannot allocate memory");
        assert_works(pool, which == CS_DECODER_IMAGES ? "baseline.jpg" : "vorbis.ogg");
    }
}

static void test_hang(void)
{
    g_autoptr(cs_media_pool) pool = new_pool(5000, NULL);
    assert_works(pool, "colour.png");
    cs_media_pool_free(g_steal_pointer(&pool));
    pool = new_pool(300, NULL);
    g_autoptr(GError) error = NULL;
    int64_t begin = cs_now_us();
    g_assert_false(cs_media_pool_probe(pool, CS_DECODER_IMAGES, CS_DECODER_PROBE_HANG, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_TIMEOUT);
    g_assert_cmpint(cs_now_us() - begin, <, 10 * G_USEC_PER_SEC);
    assert_works(pool, "colour.png");
}

static gpointer probe_hang(gpointer pool)
{
    GError *error = NULL;
    g_assert_false(cs_media_pool_probe(pool, CS_DECODER_TRACKS, CS_DECODER_PROBE_HANG, &error));
    return error;
}

static gpointer decode_speech(gpointer pool)
{
    assert_works(pool, "pcm16.wav");
    return NULL;
}

/* A request whose process is killed is asked once more; killed again, it fails and says so. */
static void test_killed(void)
{
    g_autoptr(cs_media_pool) pool = new_pool(20000, NULL);
    assert_works(pool, "pcm16.wav");
    pid_t first = cs_media_pool_process(pool, CS_DECODER_TRACKS, 0), second = 0;
    g_assert_cmpint(first, >, 0);
    GThread *thread = g_thread_new("hang", probe_hang, pool);
    g_usleep(200000);
    kill(first, SIGKILL);
    for (int i = 0; i < 10000 && (second == 0 || second == first); i++) {
        g_usleep(1000);
        second = cs_media_pool_process(pool, CS_DECODER_TRACKS, 0);
    }
    g_assert_cmpint(second, !=, first);
    kill(second, SIGKILL);
    g_autoptr(GError) error = g_thread_join(thread);
    g_assert_error(error, CS_ERROR, CS_ERROR_FAILED);
    g_assert_nonnull(strstr(error->message, "signal 9"));

    assert_works(pool, "pcm16.wav");
    pid_t third = cs_media_pool_process(pool, CS_DECODER_TRACKS, 0);
    g_assert_cmpint(third, !=, second);
    kill(third, SIGSTOP);
    thread = g_thread_new("decode", decode_speech, pool);
    g_usleep(100000);
    kill(third, SIGKILL);
    g_thread_join(thread);

    /* Killed while idle: the next request does not notice. */
    kill(cs_media_pool_process(pool, CS_DECODER_TRACKS, 0), SIGKILL);
    g_usleep(50000);
    assert_works(pool, "pcm16.wav");
    g_assert_cmpuint(cs_media_pool_restarts(pool), ==, 4);
}

static void test_busy(void)
{
    g_autoptr(GError) error = NULL;
    cs_media_pool_options options = CS_MEDIA_POOL_OPTIONS_DEFAULT;
    options.program = program;
    options.deadline_ms = 400;
    options.track_processes = 1;
    g_autoptr(cs_media_pool) pool = cs_media_pool_new(&options, &error);
    GThread *thread = g_thread_new("hang", probe_hang, pool);
    g_usleep(100000);
    g_autoptr(GBytes) bytes = load("pcm16.wav");
    uint64_t hash;
    bool good =
        decode(pool, AUDIO, g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes), &hash, &error);
    if (!good) /* else the first had been given up in time */
        g_assert_error(error, CS_ERROR, CS_ERROR_BUSY);
    g_error_free(g_thread_join(thread));
}

static void test_no_program(void)
{
    g_autoptr(GError) error = NULL;
    const char *missing[] = {"/nonexistent/decoder", NULL};
    const char *other[] = {"/bin/true", NULL};
    cs_media_pool_options options = CS_MEDIA_POOL_OPTIONS_DEFAULT;
    options.program = missing;
    g_assert_null(cs_media_pool_new(&options, &error));
    g_assert_nonnull(error);
    options.program = other;
    g_autoptr(cs_media_pool) pool = cs_media_pool_new(&options, NULL);
    assert_refused(pool, IMAGE, "GIF89a", 6, CS_ERROR_FAILED,
                   "the media decoder process ended with status 0");
}

/* A pool of processes that would start pools themselves: it ends at the first. */
static void test_self_start(void)
{
    g_autoptr(GError) error = NULL;
    const char *self[] = {"/proc/self/exe", NULL};
    cs_media_pool_options options = CS_MEDIA_POOL_OPTIONS_DEFAULT;
    options.program = self;
    g_autoptr(cs_media_pool) pool = cs_media_pool_new(&options, &error);
    g_assert_no_error(error);
    assert_refused(pool, IMAGE, "GIF89a", 6, CS_ERROR_FAILED,
                   "the media decoder process ended with status 77");
    g_setenv("CORNSERVE_MEDIA_PROCESS", "1", TRUE);
    g_assert_null(cs_media_pool_new(&options, &error));
    g_assert_error(error, CS_ERROR, CS_ERROR_FAILED);
    g_unsetenv("CORNSERVE_MEDIA_PROCESS");
}

/* ---- hostile media ---- */

static void put_be32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
}

static uint32_t crc32_of(const uint8_t *data, size_t n)
{
    uint32_t crc = ~0u;
    for (size_t i = 0; i < n; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

/* A real PNG whose header claims another size. */
static GByteArray *png_claiming(uint32_t width, uint32_t height)
{
    g_autoptr(GBytes) bytes = load("colour.png");
    GByteArray *png = g_bytes_unref_to_array(g_steal_pointer(&bytes));
    put_be32(png->data + 16, width);
    put_be32(png->data + 20, height);
    put_be32(png->data + 29, crc32_of(png->data + 12, 17));
    return png;
}

static void test_bombs(void)
{
    g_autoptr(cs_media_pool) pool = new_pool(20000, NULL);
    g_autoptr(GByteArray) bomb = png_claiming(10000, 10000);
    assert_refused(pool, IMAGE, bomb->data, bomb->len, CS_ERROR_TOO_LARGE,
                   "PNG of 10000 x 10000 pixels; at most 50000000 pixels are taken");
    g_autoptr(GByteArray) wide = png_claiming(0x7fffffff, 0x7fffffff);
    assert_refused(pool, IMAGE, wide->data, wide->len, CS_ERROR_TOO_LARGE, NULL);
    g_autoptr(GByteArray) none = png_claiming(0, 7);
    assert_refused(pool, IMAGE, none->data, none->len, CS_ERROR_INVALID, NULL);
    g_autoptr(GByteArray) more = png_claiming(37, 400);
    assert_refused(pool, IMAGE, more->data, more->len, CS_ERROR_INVALID, NULL);

    static const uint8_t gif[] =
        "GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2\4\1\0;";
    assert_refused(pool, IMAGE, gif, sizeof gif - 1, CS_ERROR_TOO_LARGE,
                   "GIF of 65535 x 65535 pixels; at most 50000000 pixels are taken");
    g_assert_cmpuint(cs_media_pool_restarts(pool), ==, 0);
}

static void test_not_media(void)
{
    g_autoptr(cs_media_pool) pool = new_pool(20000, NULL);
    g_autoptr(GBytes) png = load("colour.png"), wav = load("pcm16.wav"), mp4 = load("turned.mp4");
    assert_refused(pool, IMAGE, "hello", 5, CS_ERROR_UNSUPPORTED,
                   "expected a JPEG, PNG, WebP or GIF image, found data of an unknown format");
    assert_refused(pool, IMAGE, g_bytes_get_data(wav, NULL), g_bytes_get_size(wav),
                   CS_ERROR_UNSUPPORTED, "expected a JPEG, PNG, WebP or GIF image, found WAV");
    assert_refused(pool, AUDIO, g_bytes_get_data(png, NULL), g_bytes_get_size(png),
                   CS_ERROR_UNSUPPORTED, "expected audio or video, found PNG");
    assert_refused(pool, VIDEO, g_bytes_get_data(wav, NULL), g_bytes_get_size(wav),
                   CS_ERROR_UNSUPPORTED, "expected an MP4 or WebM video, found WAV");
    assert_refused(pool, AUDIO, g_bytes_get_data(mp4, NULL), g_bytes_get_size(mp4),
                   CS_ERROR_INVALID, "MP4 without an audio track");
    assert_refused(pool, IMAGE, "", 0, CS_ERROR_INVALID, "empty image");
    assert_refused(pool, VIDEO, "", 0, CS_ERROR_INVALID, "empty video");
    g_assert_cmpuint(cs_media_pool_restarts(pool), ==, 0);
}

static void test_empty_wav(void)
{
    g_autoptr(cs_media_pool) pool = new_pool(20000, NULL);
    static const uint8_t wav[44] = "RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80\x3e\0\0\0\x7d\0\0"
                                   "\2\0\x10\0data\0\0\0";
    assert_refused(pool, AUDIO, wav, sizeof wav, CS_ERROR_INVALID, "WAV without samples");
    assert_refused(pool, AUDIO, wav, 36, CS_ERROR_INVALID, "WAV without samples");
    assert_refused(pool, AUDIO, wav, 12, CS_ERROR_INVALID, "WAV without samples");
}

/* Sizes that a recorder which writes to a pipe leaves behind: the sound is what is there. A size
 * that could be true is taken at its word. */
static void test_open_ended_wav(void)
{
    g_autoptr(cs_media_pool) pool = new_pool(20000, NULL);
    g_autoptr(GBytes) bytes = load("pcm16.wav");
    gsize size;
    const uint8_t *original = g_bytes_get_data(bytes, &size);
    g_autofree uint8_t *wav = g_memdup2(original, size);
    uint8_t *field = memmem(wav, size, "data", 4);
    uint64_t expected, hash;
    g_autoptr(GError) error = NULL;
    g_assert_true(decode(pool, AUDIO, original, size, &expected, &error));
    static const uint32_t claims[] = {0, 0xFFFFFFFF, 0xFFFFFFF0, 0x7FFFFFDB};
    for (size_t i = 0; i < G_N_ELEMENTS(claims); i++) {
        uint32_t claim = GUINT32_TO_LE(claims[i]);
        memcpy(field + 4, &claim, 4);
        decode(pool, AUDIO, wav, size, &hash, &error);
        g_assert_no_error(error);
        g_assert_cmpuint(hash, ==, expected);
    }
    uint32_t claim = GUINT32_TO_LE(1u << 24);
    memcpy(field + 4, &claim, 4);
    assert_refused(pool, AUDIO, wav, size, CS_ERROR_INVALID, NULL);
}

static void test_limits(void)
{
    cs_media_limits limits = {.max_input_bytes = 40000,
                              .max_output_bytes = 1 << 20,
                              .max_pixels = 1000,
                              .max_frames = 9,
                              .max_seconds = 0.25};
    g_autoptr(cs_media_pool) pool = new_pool(20000, &limits);
    const struct {
        const char *name, *sentence;
    } cases[] = {
        {"baseline.jpg", "JPEG of 37 x 29 pixels; at most 1000 pixels are taken"},
        {"lossy.webp", "WebP of 37 x 29 pixels; at most 1000 pixels are taken"},
        {"pcm16.wav", "WAV of 0.3 s; at most 0.2 s are taken"},
        {"vorbis.ogg", "Ogg of 0.4 s; at most 0.2 s are taken"},
        {"av1.mp4", "MP4 of 10 frames; at most 9 are taken"},
        {"three.flac", "audio of 40977 bytes; at most 40000 are taken"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GBytes) bytes = load(cases[i].name);
        assert_refused(pool, kind_of(cases[i].name), g_bytes_get_data(bytes, NULL),
                       g_bytes_get_size(bytes), CS_ERROR_TOO_LARGE, cases[i].sentence);
    }
    limits.max_frames = 1000;
    limits.max_seconds = 100;
    limits.max_pixels = 10000;
    g_autoptr(cs_media_pool) second = new_pool(20000, &limits);
    g_autoptr(GBytes) video = load("h264.mp4");
    assert_refused(second, VIDEO, g_bytes_get_data(video, NULL), g_bytes_get_size(video),
                   CS_ERROR_TOO_LARGE,
                   "MP4: 4 frames of 392 x 280 pixels; at most 1048576 bytes of decoded data are "
                   "taken");
}

/* An MP4 whose sample tables claim 10^9 frames. */
static void test_billion_frames(void)
{
    g_autoptr(cs_media_pool) pool = new_pool(20000, NULL);
    g_autoptr(GBytes) bytes = load("turned.mp4");
    g_autoptr(GByteArray) mp4 = g_bytes_unref_to_array(g_steal_pointer(&bytes));
    int patched = 0;
    for (size_t i = 0; i + 24 < mp4->len; i++)
        if (memcmp(mp4->data + i, "stsz", 4) == 0) {
            put_be32(mp4->data + i + 8, 1); /* every sample of one byte */
            put_be32(mp4->data + i + 12, 1000000000);
            patched++;
        } else if (memcmp(mp4->data + i, "stts", 4) == 0) {
            put_be32(mp4->data + i + 12, 1000000000);
            patched++;
        }
    g_assert_cmpint(patched, ==, 2);
    int64_t begin = cs_now_us();
    assert_refused(pool, VIDEO, mp4->data, mp4->len, CS_ERROR_TOO_LARGE,
                   "MP4 of 1000000000 frames; at most 54000 are taken");
    g_assert_cmpint(cs_now_us() - begin, <, 5 * G_USEC_PER_SEC);
    g_assert_cmpuint(cs_media_pool_restarts(pool), ==, 0);
}

static const char *const all_files[] = {
    "baseline.jpg",  "progressive.jpg", "cmyk.jpg",       "grey.jpg",     "colour.png",
    "alpha.png",     "palette.png",     "interlaced.png", "colour16.png", "lossy.webp",
    "lossless.webp", "alpha.webp",      "animated.webp",  "plain.gif",    "interlaced.gif",
    "animated.gif",  "full_table.gif",  "pcm16.wav",      "float.wav",    "three.flac",
    "vorbis.ogg",    "opus.ogg",        "voice.mp3",      "aac.m4a",      "h264.mp4",
    "vp9.webm",      "av1.mp4",         "turned.mp4",
};

static void assert_medias_fault(const char *name, size_t n, const GError *error)
{
    if (error->domain != CS_ERROR ||
        (error->code != CS_ERROR_INVALID && error->code != CS_ERROR_UNSUPPORTED &&
         error->code != CS_ERROR_TOO_LARGE))
        g_error("%s, case %zu: %s", name, n, error->message);
    g_assert_true(g_utf8_validate(error->message, -1, NULL));
}

/* A prefix fails, or all that counts was in it (a missing end mark); MP3 has neither length nor
 * end, so that a part of it is a shorter sound. */
static void test_truncated(void)
{
    g_autoptr(cs_media_pool) pool = new_pool(20000, NULL);
    size_t failed = 0;
    for (size_t f = 0; f < G_N_ELEMENTS(all_files); f++) {
        g_autoptr(GBytes) bytes = load(all_files[f]);
        size_t size, steps = kind_of(all_files[f]) == VIDEO ? 12 : 40;
        const uint8_t *data = g_bytes_get_data(bytes, &size);
        uint64_t whole, part;
        decode(pool, kind_of(all_files[f]), data, size, &whole, NULL);
        for (size_t i = 0; i < steps; i++) {
            g_autoptr(GError) error = NULL;
            size_t cut = i < 6 ? size - i - 1 : size * (i - 5) / steps;
            if (decode(pool, kind_of(all_files[f]), data, cut, &part, &error)) {
                if (part != whole && !g_str_equal(all_files[f], "voice.mp3"))
                    g_error("%s, %zu of %zu bytes: decoded to something else", all_files[f], cut,
                            size);
            } else {
                assert_medias_fault(all_files[f], cut, error);
                failed++;
            }
        }
    }
    g_test_message("%zu truncated files refused", failed);
    g_assert_cmpuint(failed, >, G_N_ELEMENTS(all_files) * 10);
    g_assert_cmpuint(cs_media_pool_restarts(pool), ==, 0);
}

/* Files with some bytes changed: whatever comes of it, no process dies of it. */
static void test_mutated(void)
{
    g_autoptr(cs_media_pool) pool = new_pool(20000, NULL);
    g_autoptr(GRand) random = g_rand_new_with_seed(20240611);
    int64_t end = cs_now_us() + 4 * G_USEC_PER_SEC;
    size_t n = 0, refused = 0;
    for (; cs_now_us() < end; n++) {
        const char *name = all_files[n % G_N_ELEMENTS(all_files)];
        g_autoptr(GError) error = NULL;
        g_autoptr(GBytes) bytes = load(name);
        g_autoptr(GByteArray) data = g_bytes_unref_to_array(g_steal_pointer(&bytes));
        int changes = g_rand_int_range(random, 1, 12);
        gint32 span = g_rand_boolean(random) ? (gint32)data->len : MIN((gint32)data->len, 200);
        for (int i = 0; i < changes; i++)
            data->data[g_rand_int_range(random, 0, span)] = (uint8_t)g_rand_int(random);
        uint64_t hash;
        if (!decode(pool, kind_of(name), data->data, data->len, &hash, &error)) {
            assert_medias_fault(name, n, error);
            refused++;
        }
    }
    g_test_message("%zu of %zu mutated files refused", refused, n);
    g_assert_cmpuint(refused, >, 0);
    g_assert_cmpuint(cs_media_pool_restarts(pool), ==, 0);
}

/* ---- many at once, and nothing left behind ---- */

typedef struct {
    cs_media_pool *pool;
    size_t first;
} crowd;

static gpointer decode_all(gpointer user)
{
    crowd *c = user;
    for (size_t i = 0; i < G_N_ELEMENTS(all_files); i++)
        assert_works(c->pool, all_files[(c->first + i) % G_N_ELEMENTS(all_files)]);
    return NULL;
}

static size_t open_descriptors(void)
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
    size_t n = 0;
    while (g_dir_read_name(dir))
        n++;
    return n;
}

static void test_crowd(void)
{
    size_t before = open_descriptors();
    cs_media_pool *pool = new_pool(60000, NULL);
    crowd members[6];
    GThread *threads[6];
    for (size_t i = 0; i < 6; i++) {
        members[i] = (crowd){pool, i * 5};
        threads[i] = g_thread_new("crowd", decode_all, &members[i]);
    }
    for (size_t i = 0; i < 6; i++)
        g_thread_join(threads[i]);
    g_assert_cmpuint(cs_media_pool_restarts(pool), ==, 0);
    for (int i = 0; i < 3; i++)
        g_assert_false(cs_media_pool_probe(pool, CS_DECODER_IMAGES, CS_DECODER_PROBE_SOCKET, NULL));
    cs_media_pool_free(pool);
    g_assert_cmpuint(open_descriptors(), ==, before);
    g_assert_cmpint(waitpid(-1, NULL, WNOHANG), ==, -1);
    g_assert_cmpint(errno, ==, ECHILD);
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    if (argc == 2 && strcmp(argv[1], "3") == 0) /* started by test_self_start */
        return cs_media_pool_new(&CS_MEDIA_POOL_OPTIONS_DEFAULT, &error) ? 0 : 77;
    g_test_init(&argc, &argv, NULL);
    program[0] = g_getenv("CS_MEDIA_DECODER");
    json_t *empty = json_object();
    cs_json_reader reader;
    cs_json_reader_init(&reader, empty, "defaults");
    cs_vision_config_read(&vision, &reader);
    g_assert_true(cs_json_reader_finish(&reader, NULL));
    json_decref(empty);
    g_test_add_func("/media/decoder/sandbox", test_sandbox);
    g_test_add_func("/media/decoder/hang", test_hang);
    g_test_add_func("/media/decoder/killed", test_killed);
    g_test_add_func("/media/decoder/busy", test_busy);
    g_test_add_func("/media/decoder/no-program", test_no_program);
    g_test_add_func("/media/decoder/self-start", test_self_start);
    g_test_add_func("/media/decoder/bombs", test_bombs);
    g_test_add_func("/media/decoder/not-media", test_not_media);
    g_test_add_func("/media/decoder/empty-wav", test_empty_wav);
    g_test_add_func("/media/decoder/open-ended-wav", test_open_ended_wav);
    g_test_add_func("/media/decoder/limits", test_limits);
    g_test_add_func("/media/decoder/billion-frames", test_billion_frames);
    g_test_add_func("/media/decoder/truncated", test_truncated);
    g_test_add_func("/media/decoder/mutated", test_mutated);
    g_test_add_func("/media/decoder/crowd", test_crowd);
    return g_test_run();
}
