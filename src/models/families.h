/* The model families of this build, one folder each. */
#ifndef CS_MODELS_FAMILIES_H
#define CS_MODELS_FAMILIES_H

#include "models/model.h"

extern const cs_family cs_family_qwen2_5_omni;

#endif
