#ifndef OPENMM_SD_BASE64_H_
#define OPENMM_SD_BASE64_H_

#include <string>

namespace ScoreDynamicsPlugin {

/** Bytes as text (RFC 4648, with padding). */
std::string toBase64(const std::string& bytes);

/** The bytes again; throws OpenMMException if the text is damaged. */
std::string fromBase64(const std::string& text);

} // namespace ScoreDynamicsPlugin

#endif /*OPENMM_SD_BASE64_H_*/
