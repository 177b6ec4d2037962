#include "media/media.h"

#include <string.h>
#include <sys/mman.h>

static bool starts(const uint8_t *data, size_t size, size_t at, const char *magic)
{
    size_t n = strlen(magic);
    return size >= at + n && memcmp(data + at, magic, n) == 0;
}

/* An MPEG audio frame header: sync, a version and layer that exist, a bit rate and sample rate that
 * are not reserved (ISO/IEC 11172-3, 2.4.2.3). */
static bool is_mpeg_audio(const uint8_t *d, size_t size)
{
    return size >= 4 && d[0] == 0xff && (d[1] & 0xe0) == 0xe0 && (d[1] & 0x18) != 0x08 &&
           (d[1] & 0x06) == 0x02 && (d[2] & 0xf0) != 0xf0 && (d[2] & 0x0c) != 0x0c;
}

cs_media_format cs_media_sniff(const uint8_t *data, size_t size)
{
    if (starts(data, size, 0, "\xff\xd8\xff"))
        return CS_MEDIA_JPEG;
    if (starts(data, size, 0, "\x89PNG\r\n\x1a\n"))
        return CS_MEDIA_PNG;
    if (starts(data, size, 0, "RIFF") && starts(data, size, 8, "WEBP"))
        return CS_MEDIA_WEBP;
    if (starts(data, size, 0, "GIF87a") || starts(data, size, 0, "GIF89a"))
        return CS_MEDIA_GIF;
    if ((starts(data, size, 0, "RIFF") || starts(data, size, 0, "RF64")) &&
        starts(data, size, 8, "WAVE"))
        return CS_MEDIA_WAV;
    if (starts(data, size, 0, "fLaC"))
        return CS_MEDIA_FLAC;
    if (starts(data, size, 0, "OggS"))
        return CS_MEDIA_OGG;
    if (starts(data, size, 4, "ftyp"))
        return CS_MEDIA_MP4;
    if (starts(data, size, 0, "\x1a\x45\xdf\xa3"))
        return CS_MEDIA_WEBM;
    /* ADTS: a sync word of twelve bits and layer 0. */
    if (size >= 2 && data[0] == 0xff && (data[1] & 0xf6) == 0xf0)
        return CS_MEDIA_AAC;
    if (starts(data, size, 0, "ID3") || is_mpeg_audio(data, size))
        return CS_MEDIA_MP3;
    return CS_MEDIA_UNKNOWN;
}

const char *cs_media_format_name(cs_media_format format)
{
    static const char *const names[] = {
        [CS_MEDIA_UNKNOWN] = "data of an unknown format",
        [CS_MEDIA_JPEG] = "JPEG",
        [CS_MEDIA_PNG] = "PNG",
        [CS_MEDIA_WEBP] = "WebP",
        [CS_MEDIA_GIF] = "GIF",
        [CS_MEDIA_WAV] = "WAV",
        [CS_MEDIA_MP3] = "MP3",
        [CS_MEDIA_FLAC] = "FLAC",
        [CS_MEDIA_OGG] = "Ogg",
        [CS_MEDIA_AAC] = "AAC",
        [CS_MEDIA_MP4] = "MP4",
        [CS_MEDIA_WEBM] = "WebM",
    };
    return names[format];
}

bool cs_media_format_is_image(cs_media_format format)
{
    return format >= CS_MEDIA_JPEG && format <= CS_MEDIA_GIF;
}

static void mapping_clear(cs_media_mapping *mapping)
{
    if (mapping->bytes)
        munmap(mapping->address, mapping->bytes);
    *mapping = (cs_media_mapping){0};
}

void cs_image_clear(cs_image *image)
{
    mapping_clear(&image->mapping);
    *image = (cs_image){0};
}

void cs_audio_clear(cs_audio *audio)
{
    mapping_clear(&audio->mapping);
    *audio = (cs_audio){0};
}

void cs_video_clear(cs_video *video)
{
    mapping_clear(&video->mapping);
    *video = (cs_video){0};
}
