/* What goes into a model beside text. */
#ifndef CS_MODELS_MODALITY_H
#define CS_MODELS_MODALITY_H

typedef enum {
    CS_MODALITY_IMAGE,
    CS_MODALITY_VIDEO,
    CS_MODALITY_AUDIO,
    CS_N_MODALITIES
} cs_modality;

#endif
